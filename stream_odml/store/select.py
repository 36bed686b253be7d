"""Which stored rows count: visibility, later shards over earlier ones, tombstones, nearest version; in one place.

Protects: every reader, and the purge that deletes rows for good, decide by the same rule.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.store.artifacts import SUMS
from stream_odml.store.ledger import LedgerState
from stream_odml.store.tables import values
from stream_odml.store.versions import VersionTree

Ints = NDArray[np.int64]
NEVER = int(np.iinfo(np.int64).max)
COLUMNS = ("item_id", "class_name", "shard_id", "row", "version", "txn")


@dataclass(frozen=True)
class Selection:
    """Row numbers into the rows that were given, each ascending."""

    picked: Ints
    """One row for each living item: of its latest shard, made nearest to the head."""
    replaced: Ints
    """Rows that a later shard (or a later row of the same shard) replaced; no head will pick them again."""
    forgotten: Ints
    """Rows under a tombstone, the replaced ones left out. Purge `replaced` first, or an old row comes back."""


def select_rows(meta: pa.Table, ledger: LedgerState, tree: VersionTree, head: str) -> Selection:
    """Apply the rule to gallery rows that have `COLUMNS` (no vectors needed).

    An item belongs to its latest indexed shard, and there to its last row. A tombstone covers what landed
    before it. Of the rows that remain for an item, the one whose version is the fewest edges from `head`
    counts; of two equally near, the one on the head's own lineage, then the one committed first.
    """
    txns, txn_names = encode(meta["txn"])
    named = visible_txns(ledger, tree)
    visible = np.array([name in named for name in txn_names.to_pylist()], dtype=bool)[txns]
    seen = np.flatnonzero(visible)
    rows = meta if len(seen) == len(meta) else meta.filter(pa.array(visible))
    items, item_names = encode(rows["item_id"])
    shards, shard_names = encode(rows["shard_id"])
    of = [ledger.shards[name] for name in shard_names.to_pylist()]
    landed = np.array([shard.landed_seq for shard in of], dtype=np.int64)[shards]
    indexed = np.array([shard.indexed_seq or 0 for shard in of], dtype=np.int64)[shards]
    place = rows["row"].to_numpy().astype(np.int64)
    winner = _winners(items, len(item_names), indexed, place, farness(rows["version"], tree, head))
    mine = winner[items]
    replaced = (indexed != indexed[mine]) | (place != place[mine])
    forgotten = (_tombstone_seq(rows, items, item_names, ledger) > landed) & ~replaced
    picked = np.sort(winner)
    return Selection(
        seen[picked[~forgotten[picked]]], seen[np.flatnonzero(replaced)], seen[np.flatnonzero(forgotten)]
    )


def visible_txns(ledger: LedgerState, tree: VersionTree) -> frozenset[str]:
    """Return transactions whose gallery and quarantine rows count."""
    return frozenset(ledger.txns) | {version.txn for version in tree.versions.values()}


def forgotten_rows(meta: pa.Table, ledger: LedgerState) -> Ints:
    """Return numbers of the rows under a tombstone, those that a later shard replaced included."""
    if not ledger.tombstones or not len(meta):
        return np.empty(0, dtype=np.int64)
    items, item_names = encode(meta["item_id"])
    shards, names = encode(meta["shard_id"])
    landed = np.array([ledger.shards[name].landed_seq for name in names.to_pylist()], dtype=np.int64)[shards]
    return np.flatnonzero(_tombstone_seq(meta, items, item_names, ledger) > landed)


def death_seqs(meta: pa.Table, ledger: LedgerState, tree: VersionTree, rows: Ints) -> Ints:
    """Return for each of `rows` (numbers of visible rows) the `seq` of the ledger from which it does not count any
    more: of the first tombstone that covers it, or the indexing of what replaced it; `NEVER` while it counts.

    What replaced a row dies after it: rows up to a `seq` can be deleted without one coming back.
    """
    named = pa.array(sorted(visible_txns(ledger, tree)), pa.string())
    mine = meta.select(["item_id", "class_name", "shard_id", "row"]).take(pa.array(rows))
    seen = pc.and_(
        pc.is_in(meta["txn"].cast(pa.string()), value_set=named),
        pc.is_in(meta["item_id"], value_set=mine["item_id"].unique()),
    )
    landings: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for item, shard, place in values(meta.filter(seen), "item_id", "shard_id", "row"):
        landings[item].add((ledger.shards[shard].indexed_seq or 0, place))
    in_order = {item: sorted(places) for item, places in landings.items()}
    tombstones: dict[tuple[str, str], list[int]] = defaultdict(list)
    for tombstone in ledger.tombstones:
        tombstones[tombstone.kind, tombstone.name].append(tombstone.seq)
    deaths = []
    for item, name, shard, place in values(mine, "item_id", "class_name", "shard_id", "row"):
        state = ledger.shards[shard]
        after = in_order[item][bisect_right(in_order[item], (state.indexed_seq or 0, place)) :]
        died = [indexed for indexed, _ in after[:1]]
        for key in (("class", name), ("item", item), ("shard", shard)):
            of_name = tombstones.get(key, [])
            died += of_name[bisect_right(of_name, state.landed_seq) :][:1]
        deaths.append(min(died, default=NEVER))
    return np.array(deaths, np.int64)


def erased_items(meta: pa.Table, ledger: LedgerState, tree: VersionTree) -> dict[str, int]:
    """Return items that a tombstone erased, with the `seq` of the ledger at which the row that it covered was
    indexed: what landings up to there had of the item is erased too, whatever class they gave it.

    An item that had been given another class before the tombstone of its earlier one lives, and is none of them.
    """
    rows = forgotten_rows(meta, ledger)
    by_tombstone = {tombstone.seq for tombstone in ledger.tombstones}
    erased: dict[str, int] = {}
    landings = values(meta.take(pa.array(rows)), "item_id", "shard_id")
    for seq, (item, shard) in zip(death_seqs(meta, ledger, tree, rows), landings, strict=True):
        if seq in by_tombstone:  # or a later row had replaced it
            erased[item] = max(ledger.shards[shard].indexed_seq or 0, erased.get(item, -1))
    return erased


def encode(column: pa.ChunkedArray) -> tuple[Ints, pa.Array]:
    """Return codes [n] and the value of each code, of a plain or a dictionary column; every value occurs. A dictionary
    remembers what a filter took out: the version of a stage not committed yet, which no tree knows."""
    if pa.types.is_dictionary(column.type):
        encoded = column.unify_dictionaries().combine_chunks()
    else:
        encoded = column.combine_chunks().dictionary_encode()
    codes: Ints = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    occurs = np.bincount(codes, minlength=len(encoded.dictionary)) > 0
    if occurs.all():
        return codes, encoded.dictionary
    return (np.cumsum(occurs) - 1)[codes], encoded.dictionary.filter(pa.array(occurs))


def _winners(items: Ints, n_items: int, indexed: Ints, place: Ints, farness: Ints) -> Ints:
    winner = np.empty(n_items, dtype=np.int64)
    winner[items] = np.arange(len(items))
    several = np.flatnonzero(np.bincount(items, minlength=n_items)[items] > 1)
    if len(several):
        order = several[np.lexsort((-farness[several], place[several], indexed[several]))]
        winner[items[order]] = order  # of repeated indices the last assignment stands: the highest priority
    return winner


def split_rows(rows: Ints, lengths: Iterable[int]) -> Iterator[Ints]:
    """Yield for each part of tables that lie one after the other, so many rows each, which of its rows are among
    `rows`: numbers through all of them, ascending."""
    start = 0
    for length in lengths:
        first, last = np.searchsorted(rows, (start, start + length))
        yield rows[first:last] - start
        start += length


def farness(versions: pa.ChunkedArray, tree: VersionTree, head: str) -> Ints:
    """Return how far each row's version is from `head`, as ranks: the row with the lowest is the one that counts.

    Where versions share trunks, what other branches made never counts before what the head's lineage made, so that a
    version's rows, and its class sums with them, stay the same whatever is learnt from it; then maps count, not edges.
    """
    codes, dictionary = encode(versions)
    names = dictionary.to_pylist()
    solved, on_line = SUMS in tree.get(head).artifacts, _along(tree, tree.lineage(head)[::-1])
    keys = []
    for name in names:
        off = name not in on_line
        maps, edges = _along(tree, tree.path(head, name))[name] if off else on_line[name]
        keys.append((solved and off, maps if solved else 0, edges, off, tree.get(name).seq))
    rank = {key: i for i, key in enumerate(sorted(keys))}
    return np.array([rank[key] for key in keys], dtype=np.int64)[codes]


def _along(tree: VersionTree, path: list[str]) -> dict[str, tuple[int, int]]:
    """Return for each version of a path (trunks that change, edges) from its first."""
    maps, found = 0, {path[0]: (0, 0)}
    for edges, (a, b) in enumerate(pairwise(path), 1):
        maps += not tree.same_trunk(a, b)
        found[b] = maps, edges
    return found


def _tombstone_seq(rows: pa.Table, items: Ints, item_names: pa.Array, ledger: LedgerState) -> Ints:
    """Return for each row the `seq` of the latest tombstone that names its class, item or shard; -1 for none."""
    if not ledger.tombstones:
        return np.full(len(rows), -1, dtype=np.int64)
    tombstones = ledger.latest_tombstones

    def of(kind: Literal["class", "shard"], column: str) -> Ints:
        codes, names = encode(rows[column])
        seqs = np.array([tombstones.get((kind, name), -1) for name in names.to_pylist()], np.int64)
        return np.asarray(seqs[codes])

    names = [name for kind, name in tombstones if kind == "item"]
    at = pc.fill_null(pc.index_in(item_names, value_set=pa.array(names, pa.string())), len(names)).to_numpy()
    of_item = np.array([*(tombstones["item", name] for name in names), -1], dtype=np.int64)[at]
    latest: Ints = np.maximum.reduce([of("class", "class_name"), of_item[items], of("shard", "shard_id")])
    return latest
