"""Thumbnails and held-out images, one file of each a shard, and what an erasure takes of them.

Protects: a picture goes with its item and stays with it, whatever class the item had where it landed and has now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.storage.files import Files
from stream_odml.store.housekeeping import Housekeeper
from stream_odml.store.labels import images_of
from stream_odml.store.layout import REWRITTEN
from stream_odml.store.ledger import LedgerState
from stream_odml.store.select import erased_items, select_rows
from stream_odml.store.versions import VersionTree


def forget_in_files(house: Housekeeper) -> int:
    """Rewrite thumbnails and held-out images without erased items; how many files. Call it before `purge`: a
    label leaves the picture where it landed, under its earlier class, and only the rows tell that it is the item's."""
    files, ledger = house.store.files, house.ledger
    if not ledger.tombstones:
        return 0
    last = ledger.tombstones[-1].seq
    landed = sorted(s.shard_id for s in ledger.shards.values() if s.landed_seq < last)
    found = [(f"{folder}/{shard_id}.parquet", shard_id) for folder in REWRITTEN for shard_id in landed]
    found = [(path, shard_id) for path, shard_id in found if files.exists(path)]
    if not found:
        return 0
    meta = house.store.again(house.store.metadata)
    erased = erased_items(meta, house.ledger, house.store.tree)
    rewritten = 0
    for path, shard_id in found:
        table = pq.read_table(pa.BufferReader(files.read(path)))
        indexed = ledger.shards[shard_id].indexed_seq
        before = [item for item, seq in erased.items() if indexed is not None and indexed <= seq]
        gone: NDArray[np.bool_] = np.isin(_column(table, "item_id"), before)
        gone |= erased_pictures(files, path, shard_id, table, meta, ledger, house.store.tree)
        rewritten += _keep(files, path, table, ~gone)
    return rewritten


def drop_pictures(files: Files, shard_id: str, items: Sequence[str]) -> None:
    """Rewrite the files of one shard without the pictures of these items."""
    for path in (f"{folder}/{shard_id}.parquet" for folder in REWRITTEN):
        if files.exists(path):
            table = pq.read_table(pa.BufferReader(files.read(path)))
            keep = ~np.isin(_column(table, "item_id"), items)
            _keep(files, path, table, keep)


def erased_pictures(
    files: Files,
    path: str,
    shard_id: str,
    table: pa.Table,
    meta: pa.Table,
    ledger: LedgerState,
    tree: VersionTree,
) -> NDArray[np.bool_]:
    """Return which rows of a shard's file, read as ``table``, a tombstone covers. The picture of an item that a label
    had moved from an erased class before the request is none of them: it lives."""
    classes, items = _column(table, "class_name"), _column(table, "item_id")
    pairs = list(zip(classes, items, strict=True))
    gone = np.fromiter((ledger.forgotten(shard_id, c, i) for c, i in pairs), bool, len(pairs))
    if gone.any():
        named = {i: c for (c, i), is_gone in zip(pairs, gone, strict=True) if is_gone}
        living = moved_away(shard_id, named, meta, ledger, tree)
        folder = path.partition("/")[0]
        own = {at: _items_of(files, f"{folder}/{at}.parquet") for at in set(living.values())}
        gone &= ~np.isin(items, [item for item, at in living.items() if item not in own[at]])
    return gone


def moved_away(
    shard_id: str, items: Mapping[str, str], meta: pa.Table, ledger: LedgerState, tree: VersionTree
) -> dict[str, str]:
    """Return those of ``items`` (with the class that each had in this shard) that live by a label put on the image of
    this shard before that class was erased, each with the shard of the label."""
    rows = meta.filter(pc.is_in(meta["item_id"], value_set=pa.array(sorted(items), pa.string())))
    if not len(rows):
        return {}
    picked = rows.take(pa.array(select_rows(rows, ledger, tree, tree.head).picked))
    landed, tombstones = ledger.shards[shard_id].landed_seq, ledger.latest_tombstones
    found = {}
    for item, at in zip(picked["item_id"].to_pylist(), picked["shard_id"].to_pylist(), strict=True):
        erased = max(tombstones.get(("item", item), -1), tombstones.get(("shard", shard_id), -1)) > landed
        if at != shard_id and not erased and _is_moved(ledger, shard_id, at, items[item]):
            found[item] = at
    return found


def _is_moved(ledger: LedgerState, shard_id: str, at: str, class_name: str) -> bool:
    of = images_of(ledger.shards[at].counts)
    if of is not None:
        mine = images_of(ledger.shards[shard_id].counts)
        return not of.isdisjoint({shard_id} if mine is None else mine)
    # An earlier release did not note whose images its labels were put on.
    landed, indexed = ledger.shards[shard_id].landed_seq, ledger.shards[at].indexed_seq
    requests = (t.seq for t in ledger.tombstones if (t.kind, t.name) == ("class", class_name))
    first = min((seq for seq in requests if seq > landed), default=-1)
    return indexed is not None and indexed < first


def _items_of(files: Files, path: str) -> set[str]:
    if not files.exists(path):
        return set()
    return set(_column(pq.read_table(pa.BufferReader(files.read(path)), columns=["item_id"]), "item_id"))


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.schema.names else [""] * len(table)


def _keep(files: Files, path: str, table: pa.Table, keep: NDArray[np.bool_]) -> bool:
    if keep.all():
        return False
    sink = pa.BufferOutputStream()
    pq.write_table(table.filter(pa.array(keep, pa.bool_())), sink)
    files.write(path, sink.getvalue().to_pybytes())
    return True
