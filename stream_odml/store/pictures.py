"""Thumbnails and held-out images, one file of each a shard, and what an erasure takes of them.

Protects: a picture goes with its item and stays with it, whatever class the item had where it landed and has now.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.storage.files import Files
from stream_odml.store.housekeeping import Housekeeper
from stream_odml.store.labels import images_of, living_rows
from stream_odml.store.layout import REWRITTEN
from stream_odml.store.ledger import LedgerState
from stream_odml.store.select import erased_items
from stream_odml.store.store import Store
from stream_odml.store.tables import values


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
        gone = np.isin(_column(table, "item_id"), before) | erased_pictures(shard_id, table, ledger)
        rewritten += _keep(files, path, table, ~gone)
    return rewritten


def drop_pictures(files: Files, shard_id: str, items: Sequence[str]) -> None:
    """Rewrite the files of one shard without the pictures of these items."""
    for path in (f"{folder}/{shard_id}.parquet" for folder in REWRITTEN):
        if files.exists(path):
            table = pq.read_table(pa.BufferReader(files.read(path)))
            keep = ~np.isin(_column(table, "item_id"), items)
            _keep(files, path, table, keep)


def erased_pictures(shard_id: str, table: pa.Table, ledger: LedgerState) -> NDArray[np.bool_]:
    """Return which rows of a shard's file, read as `table`, a tombstone covers. Of an item that a label had moved
    from an erased class before the request the picture that lives lies beside the label."""
    named = zip(_column(table, "class_name"), _column(table, "item_id"), strict=True)
    return np.fromiter((ledger.forgotten(shard_id, *names) for names in named), bool, len(table))


def moved_away(store: Store, shard_id: str, items: Collection[str]) -> set[str]:
    """Return those of `items` that a label moved to another class before the class that this shard gave them was
    erased: they live."""
    ledger = store.ledger
    landed, tombstones = ledger.shards[shard_id].landed_seq, ledger.latest_tombstones
    if tombstones.get(("shard", shard_id), -1) > landed:
        return set()
    mine = images_of(ledger.shards[shard_id].counts)
    images = {shard_id} if mine is None else mine
    rows = store.again(lambda: living_rows(store, pa.array(items, pa.string())))
    return {
        item
        for item, at in values(rows, "item_id", "shard_id")
        if tombstones.get(("item", item), -1) <= landed
        and not images.isdisjoint(images_of(ledger.shards[at].counts) or ())
    }


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.schema.names else [""] * len(table)


def _keep(files: Files, path: str, table: pa.Table, keep: NDArray[np.bool_]) -> bool:
    if keep.all():
        return False
    files.write(path, as_parquet(table.filter(pa.array(keep, pa.bool_()))))
    return True


def as_parquet(table: pa.Table) -> bytes:
    """Return the bytes of a file of pictures."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
