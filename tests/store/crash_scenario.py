"""A driver in miniature that derives all it does from the store, so it can be killed anywhere and run again."""

from datetime import timedelta

import numpy as np
import pyarrow as pa

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.store.artifacts import BACKWARD, BANK, FORWARD, HEAD, STUDENT, SUMS
from stream_odml.store.erasure import forget_in_banks
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums, sums_now, task_rows
from stream_odml.store.tables import Form, quarantine_rows
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import IngestBatch, Writer
from tests.store.world import DIM, Floats, Item, Shard, drift_pair, make_rows

ITEMS = {shard: [Item(f"{shard}/{i}", f"class {i % 3}") for i in range(4)] for shard in ("a", "b", "c", "d")}
LIFT = Lift(DIM)
TIDY = MaintenancePolicy(compact_files=3, retention=timedelta(0), orphan_age=timedelta(0))


def raw(shard: str, version: str) -> Floats:
    """The vectors that a model makes of a shard: the same whenever it is asked."""
    return np.random.default_rng([ord(shard), int(version[1:5])]).normal(size=(len(ITEMS[shard]), DIM))


def run(root: str, form: Form = "embedding") -> None:
    """All of a small stream's life."""
    writer = Writer.claim(Store.create(root, DIM, form=form, keep_gallery=False), "scenario")
    first = writer.commit_root({STUDENT: b"initial", **statistics(writer, ClassSums.empty(LIFT), "")})
    writer.record_landed([Shard(name) for name in ITEMS] + [Shard("broken")])
    writer.set_aside("broken", "not a Parquet file")
    index(writer, ["a"])
    index(writer, ["b", "c"])
    learn(writer, "task-0001", ["a"], refuse_first=True)
    index(writer, ["d"])
    learn(writer, "task-0002", ["b", "c"])
    turn_back_once(writer, first)
    if not writer.ledger.tombstones:
        writer.forget("class", "class 1")
    forget_in_banks(writer)
    forget_in_sums(writer)
    writer.maintain(TIDY)
    writer.release()


def index(writer: Writer, shards: list[str]) -> None:
    if all(writer.ledger.shards[s].txn for s in shards):
        return
    version = writer.tree.head
    codes = writer.store.row_codes
    rows = [make_rows(s, ITEMS[s], raw(s, version), version, codes=codes) for s in shards]
    bad = quarantine_rows([(shards[0], 9, "truncated", "", b"\xff")])

    writer.commit_ingest(IngestBatch(shards, pa.concat_tables(rows), bad))


def learn(writer: Writer, task: str, shards: list[str], refuse_first: bool = False) -> None:
    writer.close_task(task, shards, "enough classes")
    if writer.ledger.tasks[task].relearn_seq < 0:  # given up and taken back, once in the task's life
        writer.skip_task(task, "given up")
        writer.relearn_task(task)
    if task in writer.tree.learnt() or writer.ledger.tasks[task].skipped or len(writer.tree.moves) > 3:
        return
    if refuse_first and not writer.ledger.tasks[task].refusals:
        writer.refuse(writer.begin_attempt(task), task, "recall fell")
    version = writer.begin_attempt(task)
    if writer.store.form == "exact" and task != "task-0001":
        _new_head(writer, version, task, shards)
        return
    forward, backward = drift_pair(int(version[1:5]))
    codes = writer.store.row_codes
    rows = pa.concat_tables([make_rows(s, ITEMS[s], raw(s, version), version, codes=codes) for s in shards])
    names = [item.class_name for shard in shards for item in ITEMS[shard]]
    h = np.concatenate([raw(shard, version) for shard in shards])
    data = {STUDENT: b"student", FORWARD: forward.to_bytes(), BACKWARD: backward.to_bytes()}
    data |= statistics(writer, ClassSums.of(LIFT, encode(h.astype(np.float32)), names), version)
    refs = {name: writer.put_artifact(version, name, part) for name, part in data.items()}
    writer.commit_stage(version, writer.tree.head, task, refs, rows, {SUMS_SEQ: writer.ledger.seq})


def statistics(writer: Writer, sums: ClassSums, version: str) -> dict[str, bytes]:
    """What a version of either form keeps of classes: sums and a head, or a bank."""
    if writer.store.form == "exact":
        return {SUMS: sums.to_bytes(), HEAD: solve_head(sums, HeadSettings(dim=2)).to_bytes()}
    bank = ClassBank.empty(DIM)
    if len(sums):
        means = np.ones((len(sums), DIM), np.float32)
        bank = bank.with_classes(list(sums.names), version, sums.counts_C, means, means)
    return {BANK: bank.to_bytes()}


def _new_head(writer: Writer, version: str, task: str, shards: list[str]) -> None:
    parent = writer.tree.head
    sums = sums_now(writer.store, parent).plus(task_rows(writer.store, parent, shards).sums(LIFT))
    data = statistics(writer, sums, version)
    refs = {name: writer.put_artifact(version, name, part) for name, part in data.items()}
    refs[STUDENT] = writer.tree.get(parent).artifacts[STUDENT]
    writer.commit_stage(version, parent, task, refs, metrics={SUMS_SEQ: writer.ledger.seq})


def turn_back_once(writer: Writer, first: str) -> None:
    """Roll back to the root (its tasks skipped) and forward again, once in the root's life."""
    if [m for m in writer.tree.moves if m.reason == "forward"]:
        return
    latest = list(writer.tree.versions)[-1]
    if not [m for m in writer.tree.moves if m.reason == "back"]:
        writer.move_head(first, "back", skip_abandoned=True)
    writer.move_head(latest, "forward")
