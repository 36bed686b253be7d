"""What must hold after any fault: nothing missing, nothing phantom, nothing twice; all tables agree.

Reads the tables' rows, and compares them with what producers were told; what the stream says of itself is no witness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from stream_odml.learn.bank import ClassBank
from stream_odml.store.artifacts import BANK
from stream_odml.store.select import select_rows
from stream_odml.store.store import Store
from stream_odml.store.table import Table
from tests.faults.truth import Truth

KINDS = ("lost", "phantom", "indexed_twice", "learnt_twice", "disagree")


class Violation(NamedTuple):
    """A broken promise: one of :data:`KINDS`, and in words."""

    kind: str
    text: str


def violations(store: Store, truth: Truth, final: bool = True, learnt: bool = True) -> list[Violation]:
    """Every broken promise. ``final``: nothing is on its way any more, so all that was confirmed must be there, and
    (``learnt``) each shard of it must be learnt."""
    found = [*_ledger(store), *_gallery(store, truth, final), *_stages(store), *_bank(store)]
    return found + (list(_settled(store, truth, learnt)) if final else [])


def _raw(store: Store, name: str) -> list[dict[str, Any]]:
    """All rows of a table by a handle of its own."""
    table = Table(store.files, name, store.storage_options)
    table.refresh()
    return [row for path in sorted(table.present) for row in table.read(path).to_pylist()]


def _ledger(store: Store) -> Iterator[Violation]:
    rows = _raw(store, "ledger")
    for kind, what in (
        ("indexed", "indexed_twice"),
        ("landed", "indexed_twice"),
        ("assigned", "learnt_twice"),
    ):
        seen = Counter(row["subject"] for row in rows if row["kind"] == kind)
        yield from (Violation(what, f"shard {s} is {kind} {n} times") for s, n in seen.items() if n > 1)
    twice = [seq for seq, n in Counter(row["seq"] for row in rows).items() if n > 1]
    yield from (Violation("disagree", f"seq {seq} of the ledger is used twice") for seq in twice)
    names = Counter(shard.name for shard in store.ledger.shards.values())
    yield from (Violation("indexed_twice", f"{s} has {n} shard ids") for s, n in names.items() if n > 1)


def _gallery(store: Store, truth: Truth, final: bool) -> Iterator[Violation]:
    rows = store.gallery_rows(vectors=False)
    keys = zip(*(rows[c].to_pylist() for c in ("shard_id", "row", "version", "txn")), strict=True)
    twice = ((key, n) for key, n in Counter(keys).items() if n > 1)
    yield from (Violation("indexed_twice", f"{key} is {n} times in the gallery") for key, n in twice)
    if not store.tree.moves:
        return
    picked = rows.take(select_rows(rows, store.ledger, store.tree, store.tree.head).picked)
    items = picked["item_id"].to_pylist()
    served = dict(zip(items, picked["class_name"].to_pylist(), strict=True))
    yield from (Violation("indexed_twice", f"item {i} is served {n} times") for i, n in _repeated(items))
    yield from (Violation("phantom", f"item {i} never landed") for i in served.keys() - truth.tried.keys())
    yield from (Violation("phantom", f"item {i} was forgotten") for i in served.keys() & truth.forgotten)
    wrong = (i for i in served.keys() & truth.tried.keys() if served[i] != truth.tried[i])
    yield from (
        Violation("phantom", f"item {i} is of {served[i]}, landed as {truth.tried[i]}") for i in wrong
    )
    yield from _missing(store, truth, set(served), final)
    yield from _agree(store, picked)


def _repeated(names: list[str]) -> list[tuple[str, int]]:
    return [(name, n) for name, n in Counter(names).items() if n > 1]


def _missing(store: Store, truth: Truth, served: set[str], final: bool) -> Iterator[Violation]:
    """A shard that is indexed has all of its items; in the end, all shards are."""
    indexed = {shard.name for shard in store.ledger.shards.values() if shard.indexed_seq is not None}
    for shard in truth.shards.values():
        if shard.name not in indexed:
            if final:
                yield Violation("lost", f"shard {shard.name} was confirmed and is not indexed")
            continue
        lost = shard.items.keys() - served - truth.forgetting
        yield from (Violation("lost", f"item {item} of {shard.name} is not served") for item in sorted(lost))


def _agree(store: Store, picked: pa.Table) -> Iterator[Violation]:
    """What the ledger counted of each shard is what the gallery holds of it."""
    if store.ledger.tombstones:
        return
    held = Counter(picked["shard_id"].to_pylist())
    for shard in store.ledger.shards.values():
        if shard.indexed_seq is not None and held[shard.shard_id] != shard.rows:
            yield Violation(
                "disagree", f"{shard.name}: ledger {shard.rows} rows, gallery {held[shard.shard_id]}"
            )


def _stages(store: Store) -> Iterator[Violation]:
    if not store.tree.moves:
        return
    line = [store.tree.get(v) for v in store.tree.lineage(store.tree.head)[1:]]
    tasks = [version.task for version in line if version.task]
    yield from (Violation("learnt_twice", f"{task} is learnt {n} times") for task, n in _repeated(tasks))
    members = [s for task in tasks for s in store.ledger.tasks[task].shard_ids]
    yield from (Violation("learnt_twice", f"shard {s} is learnt {n} times") for s, n in _repeated(members))
    rows = _raw(store, "versions")
    made = [row["version_id"] for row in rows if row["kind"] == "version"]
    yield from (Violation("learnt_twice", f"version {v} is committed {n} times") for v, n in _repeated(made))


def _settled(store: Store, truth: Truth, learnt: bool) -> Iterator[Violation]:
    waiting = {**store.ledger.landed}
    yield from (Violation("lost", f"shard {s.name} is landed only") for s in waiting.values())
    if learnt and store.next_task() is not None:
        yield Violation("lost", f"{store.next_task()} is not learnt")
    if learnt:
        yield from (Violation("lost", f"{t.task_id} is skipped: {t.skipped}") for t in _skipped(store))
    known = {shard.name for shard in store.ledger.shards.values()}
    yield from (Violation("lost", f"shard {n} is not in the ledger") for n in truth.shards.keys() - known)


def _skipped(store: Store) -> list[Any]:
    return [task for task in store.ledger.tasks.values() if task.skipped is not None]


def _bank(store: Store) -> Iterator[Violation]:
    """The bank has an entry for each class of each stage of the head's line, and no other."""
    if not store.tree.moves:
        return
    head = store.tree.get(store.tree.head)
    if BANK not in head.artifacts or store.ledger.tombstones:
        return
    held = set(ClassBank.from_bytes(store.artifact(head.version_id, BANK)).keys)
    expected = {
        (name, version)
        for version in store.tree.lineage(head.version_id)[1:]
        for shard in store.ledger.tasks[store.tree.get(version).task or ""].shard_ids
        for name, count in store.ledger.shards[shard].counts["trainable"].items()
        if count
    }
    yield from (Violation("lost", f"the bank lacks {key}") for key in expected - held)
    yield from (
        Violation("phantom", f"the bank holds {key}, which no stage learnt") for key in held - expected
    )
