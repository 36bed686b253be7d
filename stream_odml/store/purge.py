"""Delete the rows that no reader can ever pick: what crashes left, what was replaced, what is to be erased.

Protects: only such rows go, and a writer of the past can delete nothing of its successor's (a transaction's name
carries the epoch that made it).
"""

from collections.abc import Iterable, Mapping, Set
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.store.artifacts import SUMS
from stream_odml.store.erased_refusals import COLUMNS as REFUSAL
from stream_odml.store.erased_refusals import refusals_to_delete
from stream_odml.store.housekeeping import Housekeeper
from stream_odml.store.ledger import LedgerState
from stream_odml.store.select import Ints, Selection, death_seqs, forgotten_rows, select_rows
from stream_odml.store.store import Store
from stream_odml.store.tables import QUARANTINE, values

NAMES_AT_ONCE = 2000


def orphaned_txns(store: Store, epoch: int) -> dict[str, Set[str]]:
    """Return transactions of each table that nothing names and that are of this epoch or an older one."""
    visible = store.visible_txns()
    there = {name: store.again(partial(_txns_in, store, name)) for name in ("gallery", "quarantine")}
    return {
        name: {txn for txn in txns - visible if int(txn.rpartition(".")[2]) <= epoch}
        for name, txns in there.items()
    }


def drop_orphans(house: Housekeeper, found: Mapping[str, Set[str]]) -> int:
    """Delete rows of transactions that were never committed and never will be. Call it under the fence's lock: a
    commit that was under way when `orphaned_txns` `found` it is named by now."""
    dropped = 0
    for name, txns in found.items():
        house.check()
        if orphans := sorted(txns - house.store.visible_txns()):
            dropped += house.delete(house.store.tables[name], f"txn IN ({_quoted(orphans)})")
    return dropped


def purge(house: Housekeeper) -> int:
    """Delete rows that were replaced, or that a tombstone covers."""
    store = house.store
    if not store.tree.moves:
        return 0
    refusals = QUARANTINE.empty_table()
    if house.ledger.tombstones:
        refusals = store.again(lambda: _refusals(store))
        house.check()  # no refusal is judged by what was stored before it
    ledger = house.ledger
    meta = store.again(store.metadata)
    selection = select_rows(meta, ledger, store.tree, store.tree.head)
    # The replaced rows go first: were the row that replaced them gone before them, they would come back.
    dead = [_not_summed(store, meta, part) for part in (selection.replaced, selection.forgotten)]
    # Before the rows that tell which items an erased class had.
    purged = _purge_quarantine(house, refusals, meta, selection)
    for rows in dead:
        purged += _delete_places(house, "gallery", meta.take(pa.array(rows)))
    return purged


def _txns_in(store: Store, name: str) -> set[str]:
    table = store.table(name)
    parts = (table.read(path, ["txn"])["txn"].unique() for path in sorted(table.present))
    return {txn for part in parts for txn in part.to_pylist()}


def _not_summed(store: Store, meta: pa.Table, rows: Ints) -> Ints:
    """Return those of `rows` that the class sums of no kept version count any more; others are needed to
    correct them."""
    kept = [version.sums_seq for version in store.tree.kept_with(SUMS)]
    if not kept or not len(rows):
        return rows
    return rows[death_seqs(meta, store.ledger, store.tree, rows) <= min(kept)]


def _delete_places(house: Housekeeper, name: str, rows: pa.Table) -> int:
    by_shard: dict[str, dict[int, None]] = {}
    for shard_id, row in values(rows, "shard_id", "row"):
        by_shard.setdefault(shard_id, {})[row] = None
    purged = 0
    for shard_id, places in by_shard.items():
        numbers = list(map(str, places))
        for at in range(0, len(numbers), NAMES_AT_ONCE):
            some = ", ".join(numbers[at : at + NAMES_AT_ONCE])
            where = f"shard_id = {_quoted([shard_id])} AND row IN ({some})"
            purged += house.delete(house.store.tables[name], where)
    return purged


def _purge_quarantine(house: Housekeeper, rows: pa.Table, meta: pa.Table, selection: Selection) -> int:
    """Return what the quarantine says of erased items, classes and shards, first bytes included."""
    ledger = house.ledger
    if not (ledger.tombstones and len(rows)):
        return 0
    dead = meta.take(pa.array(np.concatenate([selection.replaced, selection.forgotten])))
    gone = _gone(ledger, dead.take(pa.array(forgotten_rows(dead, ledger))))

    def living() -> set[tuple[str, int]]:
        picked = meta.take(pa.array(selection.picked))
        of_shards = pc.is_in(picked["shard_id"].cast(pa.string()), value_set=rows["shard_id"].unique())
        return set(values(picked.filter(of_shards), "shard_id", "row"))

    erased = refusals_to_delete(rows, ledger, living, gone)
    return _delete_places(house, "quarantine", rows.filter(pa.array(erased)))


def _refusals(store: Store) -> pa.Table:
    """Return all rows of the quarantine: what no commit names goes as well."""
    return store.table("quarantine").read_all(REFUSAL)


def _gone(ledger: LedgerState, rows: pa.Table) -> dict[str, int]:
    """Return the items of these erased rows, each with the `seq` of the tombstone that took it."""
    found: dict[str, int] = {}
    for names in values(rows, "shard_id", "class_name", "item_id"):
        found[names[-1]] = max(found.get(names[-1], -1), ledger.tombstone_seq(*names))
    return found


def _quoted(names: Iterable[str]) -> str:
    return ", ".join("'" + name.replace("'", "''") + "'" for name in names)
