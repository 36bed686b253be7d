"""What was forgotten or replaced while a stage was learnt leaves its class sums before they are committed.

Protects: sums are of rows that are stored, or of rows whose death their `sums_seq` does not know yet; so whatever is
erased can be taken out of them.
"""

from __future__ import annotations

from dataclasses import replace

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.learn.drift import drift_map_from_bytes
from stream_odml.learn.lift import Lift
from stream_odml.pipeline.head_solving import rows_as_items
from stream_odml.pipeline.messages import StageResult
from stream_odml.store.artifacts import FORWARD, HEAD, STUDENT, SUMS, read_artifact
from stream_odml.store.store import Store
from stream_odml.store.sums import task_rows
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import Writer


class StaleSums(Exception):
    """The sums of a stage are of items that were forgotten or replaced since; learn it again from the same parent."""


def up_to_date(writer: Writer, result: StageResult) -> StageResult:
    """Return the result with sums and head of what is living now. A head solved under its parent's trunk is a matter of
    seconds: it raises StaleSums, and is solved again; so does a stage that improves what is learnt. Of a first trunk
    the sums are computed again."""
    store = writer.store
    if SUMS not in result.artifacts or not _is_stale(store, result):
        return result
    own_trunk = result.artifacts[STUDENT] != store.tree.get(result.parent).artifacts[STUDENT]
    if not own_trunk or result.version_id in store.ledger.later_attempts:
        raise StaleSums(f"{result.version_id}: items of its sums were forgotten or replaced meanwhile")
    before = ClassSums.from_bytes(read_artifact(store.files, result.artifacts[SUMS]))
    sums = store.again(lambda: _again(store, result, before.lift))
    head = DiscriminantHead.from_bytes(read_artifact(store.files, result.artifacts[HEAD]))
    data = {SUMS: sums.to_bytes(), HEAD: head.again(sums).to_bytes()}
    refs = {name: writer.put_artifact(result.version_id, name, part) for name, part in data.items()}
    metrics = {**result.metrics, SUMS_SEQ: store.ledger.seq}
    return replace(result, artifacts={**result.artifacts, **refs}, metrics=metrics)


def _is_stale(store: Store, result: StageResult) -> bool:
    seq = int(result.metrics.get(SUMS_SEQ, -1))
    return max(store.tree.get(result.parent).sums_seq, store.ledger.newest_tombstone) > seq


def _again(store: Store, result: StageResult, lift: Lift) -> ClassSums:
    """Return the sums of a first trunk, as its stage made them, of what is living now: of the rows that it embedded,
    and of those whose image it could not read, which its map moves."""
    left = task_rows(store, result.parent, store.ledger.tasks[result.task].shard_ids)
    forward = drift_map_from_bytes(read_artifact(store.files, result.artifacts[FORWARD]))
    return rows_as_items(store, result.rows, left, forward).sums(lift)
