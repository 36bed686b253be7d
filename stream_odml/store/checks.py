"""What the writer asks of rows before they are committed, and what it counts in them."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stream_odml.store.artifacts import BACKWARD, FORWARD, STUDENT, SUMS, ArtifactRef
from stream_odml.store.errors import StaleParent, UnknownSubject
from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import ShardState, TaskState
from stream_odml.store.select import forgotten_rows
from stream_odml.store.store import Store
from stream_odml.store.tables import VECTOR_COLUMNS, features_of, values, vectors_of
from stream_odml.store.versions import SUMS_SEQ, VersionTree


def known_shards(ledger: LedgerState, shard_ids: Sequence[str]) -> list[ShardState]:
    """Return the shards of these ids. Raises UnknownSubject for one that never landed."""
    unknown = [s for s in shard_ids if s not in ledger.shards]
    if unknown:
        raise UnknownSubject(f"shards {unknown[:3]} are not in the ledger; record that they landed first")
    return [ledger.shards[s] for s in shard_ids]


def closed_task(ledger: LedgerState, task_id: str) -> TaskState:
    """Return the closed task of this id. Raises UnknownSubject, with the ids that come nearest."""
    if task_id in ledger.tasks:
        return ledger.tasks[task_id]
    near = difflib.get_close_matches(task_id, list(ledger.tasks), n=3, cutoff=0.5) or list(ledger.tasks)[-3:]
    known = f"the nearest are {', '.join(near)}" if near else "no task has closed yet"
    raise UnknownSubject(
        f"there is no closed task {task_id!r}: {known}; `stream-odml status ROOT` lists them"
    )


def asks_for_more(ledger: LedgerState, tree: VersionTree, task_id: str, anyway: bool) -> bool:
    """Return whether a request to learn this task after all changes anything: it is skipped, or to be published
    `anyway`. Raises UnknownSubject, and ValueError for a task that the served version has learnt."""
    task = closed_task(ledger, task_id)
    if task_id in tree.learnt():
        raise ValueError(f"{task_id} is learnt already: the served version {tree.head} knows it")
    return task.skipped is not None or (anyway and not task.anyway)


def check_stage(
    store: Store,
    version_id: str,
    parent: str,
    task: str,
    artifacts: Mapping[str, ArtifactRef],
    metrics: Mapping[str, Any],
) -> None:
    """Raise StaleParent when the head left `parent`, ValueError for another attempt or missing artifacts. Drift maps
    are not needed where the student is the parent's: both are one space."""
    tree = store.tree
    tree.get(parent)
    if tree.head != parent:
        raise StaleParent(
            f"the head is {tree.head}, version {version_id} was learnt from {parent}; "
            "refuse it and learn the task again from the head"
        )
    current = store.open_attempt(version_id, parent) or store.current_attempt(task, parent)
    if current is None or current.version_id != version_id:
        seen = current.version_id if current else "none"
        raise ValueError(
            f"{version_id} is not the current attempt at {task!r} from {parent} (that is {seen})"
        )
    of_parent = tree.get(parent).artifacts
    one_trunk = STUDENT in artifacts and artifacts[STUDENT] == of_parent.get(STUDENT)
    needed = (STUDENT,) if one_trunk else (STUDENT, FORWARD, BACKWARD)
    missing = [n for n in needed if n not in artifacts]
    absent = [ref.path for ref in artifacts.values() if not store.files.exists(ref.path)]
    if missing or absent:
        raise ValueError(f"version {version_id} lacks artifacts {missing}, files {absent}; write them first")
    summed = int(metrics.get(SUMS_SEQ, -1))
    if SUMS in artifacts and summed < tree.get(parent).sums_seq:
        raise ValueError(
            f"the sums of {version_id} are as of row {summed} of the ledger, those of its parent {parent} as of "
            f"{tree.get(parent).sums_seq}: what was erased meanwhile is in them; sum and solve them again, and say so "
            f"as metrics[{SUMS_SEQ!r}]"
        )


def accepted(store: Store, rows: pa.Table, version: str | None = None) -> pa.Table:
    """Return the rows to commit: without forgotten ones.

    Raises ValueError for vectors of another dimension or that are not finite, a version that is not
    committed (or is not `version`), an unknown shard.
    """
    rows = fitting(store, rows, version)
    known_shards(store.ledger, rows["shard_id"].unique().to_pylist())
    keep = np.ones(len(rows), dtype=bool)
    keep[forgotten_rows(rows, store.ledger)] = False
    return rows if keep.all() else rows.filter(pa.array(keep))


def fitting(store: Store, rows: pa.Table, version: str | None = None) -> pa.Table:
    """Return the rows as this root stores them. Raises ValueError as `accepted` does, but for their shards."""
    rows = _of_form(store, rows)
    if len(rows) == 0:
        return rows
    made_by = set(rows["version"].unique().to_pylist())
    if version is not None and made_by != {version}:
        raise ValueError(f"rows of a stage must be made by {version}, these are made by {sorted(made_by)}")
    for name in made_by - {version}:
        store.tree.get(name)
    if not _are_finite(store, rows):
        raise ValueError("a vector is not finite; quarantine its row or refuse the model that made it")
    return rows


def _of_form(store: Store, rows: pa.Table) -> pa.Table:
    has = set(rows.column_names) & set(VECTOR_COLUMNS)
    needs = set(store.gallery_schema.names) & set(VECTOR_COLUMNS)
    if has != needs:
        raise ValueError(
            f"rows with {', '.join(sorted(has)) or 'no vector'} for a root in {store.form} form, which needs "
            f"{', '.join(sorted(needs))}; make them with codes=store.row_codes"
        )
    return rows.cast(store.gallery_schema)


def _are_finite(store: Store, rows: pa.Table) -> bool:
    if store.row_codes is None:
        return bool(np.isfinite(vectors_of(rows["vector"], store.dim)).all())
    features = features_of(rows, store.dim)
    if features.format != store.row_codes:
        raise ValueError(f"features coded as {features.format} for a root of {store.row_codes}")
    return bool(np.isfinite(features.scale_n).all() and np.isfinite(features.codes_nD).all())


def counted(
    shard_ids: Sequence[str], rows: pa.Table, quarantine: pa.Table, more: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return for each shard: rows, held_out, quarantined, classes (class -> rows), beside what the indexer counted."""
    counts: dict[str, dict[str, Any]] = {
        s: {**more.get(s, {}), "rows": 0, "held_out": 0, "quarantined": 0, "classes": {}} for s in shard_ids
    }
    for shard_id, class_name, held_out in values(rows, "shard_id", "class_name", "held_out"):
        count = counts[shard_id]
        count["rows"] += 1
        count["held_out"] += bool(held_out)
        if class_name:  # what has no class yet is of none
            count["classes"][class_name] = count["classes"].get(class_name, 0) + 1
    for shard_id in quarantine["shard_id"].to_pylist():
        counts[shard_id]["quarantined"] += 1
    json.dumps(counts)  # what cannot be remembered must fail before the first row is written
    return counts
