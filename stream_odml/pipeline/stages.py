"""Learning as the driver runs it: tasks are closed, dispatched one attempt at a time, and their results committed; what
is learnt is improved while none is due.

Protects: a task's members are committed before it is learnt; an attempt keeps its version id over every restart of
trainer and driver, and loses it only when it is committed or refused.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.ingest.boundary import BoundaryPolicy, Closure, Settled, WaitingShard, is_trainable
from stream_odml.learn.given_vectors import spec_of
from stream_odml.pipeline.late_erasure import up_to_date
from stream_odml.pipeline.later_stages import LaterRules, LaterStages
from stream_odml.pipeline.messages import StageKind, StageOrder, StageProgress, StageResult, shard_ref
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.checks import closed_task
from stream_odml.store.erasure import without_forgotten
from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import ShardState, TaskState
from stream_odml.store.tables import GALLERY
from stream_odml.store.unlearnt import NOTHING
from stream_odml.store.version_metrics import key
from stream_odml.store.writer import Writer

log = logging.getLogger(__name__)
MAX_FAILURES = 3
MAX_STALLS = 8
"""Times that a trainer may lose an attempt before its first step (killed, out of memory) until it is refused."""
LOOK_S = 1.0
T = TypeVar("T")


class Stages:
    """Not thread-safe: the driver calls it under its lock."""

    def __init__(
        self,
        writer: Writer,
        policy: BoundaryPolicy,
        max_refusals: int,
        learns_trunk: bool = True,
        later: LaterRules | None = None,
    ) -> None:
        """`learns_trunk`: under a discriminant head, whether the trunk that a stream starts with has to be learnt.
        `later`: which stages improve what is learnt; by default none."""
        self._writer = writer
        self._later = LaterStages(writer, later or LaterRules())
        self._learns_trunk = learns_trunk
        self._policy = policy
        self._max_refusals = max_refusals
        self._handed_at: dict[str, float] = {}
        self._failures: Counter[tuple[str, int]] = Counter()
        self._dispatched: str | None = None
        self._stalls, self._best_step = 0, 0
        self._asked_at = (-1, 0.0)
        self._seen: LedgerState | None = None
        self._looked: tuple[list[WaitingShard], Settled] = ([], {})

    def close_tasks(self) -> list[str]:
        """Close every task whose boundary has come; returns their ids."""
        closed = []
        while (closure := self._decide()) is not None:
            task = self._writer.store.ledger.next_task_id
            named = {} if closure.task is None else {"name": closure.task}
            self._writer.close_task(task, closure.shard_ids, closure.reason, named)
            if not closure.trainable:
                self._writer.skip_task(
                    task, f"{closure.images} images of {closure.classes} classes: {NOTHING}"
                )
            log.info("task %s closed with %d shards: %s", task, len(closure.shard_ids), closure.reason)
            closed.append(task)
        return closed

    def _decide(self) -> Closure | None:
        ledger = self._writer.store.ledger
        if self._asked_at[0] == ledger.seq and time.monotonic() - self._asked_at[1] < LOOK_S:
            return None  # nothing came; only an age can have been reached, and that can wait a second
        self._asked_at = (ledger.seq, time.monotonic())
        closure = self._asked(self._policy.decide)
        if closure is None:
            # A manifest that closes nothing leaves the queue, with its reason where people look for it.
            for shard_id, reason in self._policy.closes_nothing(*self._looked).items():
                log.warning("%s", reason)
                self._writer.set_aside(shard_id, reason)
        return closure

    def _asked(self, question: Callable[..., T]) -> T:
        """Return what the policy answers. What waits is worked out when the ledger grew: asked ten times a second."""
        ledger = self._writer.store.ledger
        if self._seen is not ledger:
            self._seen, self._looked = ledger, (waiting_shards(ledger), _settled(ledger))
        waiting, settled = self._looked
        known = ledger.tally.closed_classes
        return question(waiting, known, time.time(), settled, any_image=self._takes_any_image())

    def explain(self) -> list[str]:
        """Return what the open task waits for, a line for each rule."""
        return self._asked(self._policy.explain)

    def next_order(self) -> StageOrder | None:
        """Return the stage to learn now, from the head; its attempt is ledgered before this returns."""
        store = self._writer.store
        while (task := store.next_task()) is not None and self._gives_up(task):
            pass
        if task is None:
            return None
        parent = store.tree.head
        attempt = store.current_attempt(task.task_id, parent)
        version_id = attempt.version_id if attempt else self._writer.begin_attempt(task.task_id, parent)
        return StageOrder(
            task=task.task_id,
            version_id=version_id,
            parent=parent,
            depth=store.tree.get(parent).depth + 1,
            shards=tuple(shard_ref(store.ledger.shards[shard]) for shard in task.shard_ids),
            handed_at=self._handed_at.setdefault(version_id, time.time()),
            retry=self._retry(task),
            anyway=task.anyway,
            kind=self._kind(task, parent),
        )

    def _takes_any_image(self) -> bool:
        """Return whether a task that closes now needs a head alone. A task before it that will train the trunk is
        enough: what closes does not depend on how far the trainer has come."""
        ledger = self._writer.store.ledger
        return self._has_trunk() or (
            self._writer.store.form == "exact"
            and any(
                task.skipped is None and is_trainable(ledger.trainable(task.task_id))
                for task in ledger.tasks.values()
            )
        )

    def _has_trunk(self) -> bool:
        """Return whether only heads remain to be solved, which is done of any image."""
        store = self._writer.store
        if store.form == "embedding" or not store.tree.moves:
            return False
        return not self._learns_trunk or not store.tree.same_trunk(store.tree.root or "", store.tree.head)

    def _kind(self, task: TaskState, parent: str) -> StageKind:
        """Return by what a task is learnt. Features that another trunk made tell little of its items: they are embedded
        anew, unless that has failed."""
        store = self._writer.store
        if not self._has_trunk():
            return "trunk"
        made_by = {str(store.ledger.shards[shard].counts.get("version")) for shard in task.shard_ids}
        anew = any(v not in store.tree.versions or not store.tree.same_trunk(v, parent) for v in made_by)
        # A trunk that was trained, and its map, tell enough of them where the trainer is busy for long: these items are
        # embedded anew later, as all that a map moved.
        return "embed" if anew and not self._retry(task) and not self._later.moves_trunk else "head"

    def _gives_up(self, task: TaskState) -> bool:
        """Skip a task that was refused too often; here too, because a crash may have come before it was. And one of a
        few images that closed behind another, which was to train the trunk and was skipped since."""
        refused, store = task.refused, self._writer.store
        if store.form == "exact" and not self._has_trunk():
            tally = store.ledger.trainable(task.task_id)
            if not is_trainable(tally):
                count = f"{sum(tally.values())} images of {len(tally)} classes"
                self._writer.skip_task(task.task_id, f"{count}, and no trunk was learnt yet: {NOTHING}")
                return True
        if len(refused) <= self._max_refusals:
            return False
        self._writer.skip_task(task.task_id, f"refused {len(refused)} times, last: {refused[-1].refused}")
        return True

    def _retry(self, task: TaskState) -> int:
        """Return how much gentler than a first attempt: what is published at any price is learnt at the least one."""
        if not task.anyway:
            return task.refusals
        refused = sum(a.refused is not None and a.kind == "task" for a in task.attempts)
        return min(refused, self._max_refusals)

    def dispatch(self, done: StageProgress) -> StageOrder | None:
        """Return the next order for a trainer that asks, if one needs it. `done` is how far it had come with the one
        before. An attempt that comes back again and again without a further step is refused, so that others are
        learnt; one that is killed as often, but makes progress in between, is not."""
        order = self._for_trainer()
        if order is None:
            return None
        if order.version_id == self._dispatched and not self._made_progress(order.version_id, done):
            self._refuse_after(order, MAX_STALLS, "the trainer ended without a further step")
            order = self._for_trainer()
        elif order.version_id != self._dispatched:
            self._stalls, self._best_step = 0, 0
        self._dispatched = order.version_id if order is not None else None
        return order

    def _for_trainer(self) -> StageOrder | None:
        """Return the next order that needs images: what is due, else what improves what is learnt."""
        order = self.next_order()
        if order is not None and order.kind != "head":
            return order
        return self._later.next_order() if self._has_trunk() else None

    def solve_next(self) -> StageOrder | None:
        """Return the next order, if it is one for a fast stage."""
        order = self.next_order()
        return order if order is not None and order.kind == "head" else None

    def rows_for_a_head(self) -> int:
        """Return how many items wait that a fast stage will learn."""
        store = self._writer.store
        if not self._has_trunk():
            return 0
        return sum(shard.rows - shard.held_out for shard in store.ledger.indexed.values())

    def _made_progress(self, version_id: str, done: StageProgress) -> bool:
        step = done.step if done.version == version_id else 0
        if step > self._best_step:
            self._stalls, self._best_step = 0, step
            return True
        self._stalls += 1
        return self._stalls < MAX_STALLS

    def _refuse_after(self, order: StageOrder, times: int, error: str) -> None:
        self._dispatched = None
        reason = f"failed {times} times, last: {error}"
        self.commit(StageResult(order.version_id, order.parent, order.task, refusal=reason))

    def is_current(self, version_id: str) -> bool:
        """Return whether this attempt is the one to go on with."""
        store = self._writer.store
        if version_id in store.ledger.later_attempts:
            return store.open_attempt(version_id) is not None
        task = store.next_task()
        attempt = store.current_attempt(task.task_id, store.tree.head) if task is not None else None
        return attempt is not None and attempt.version_id == version_id

    def deferred(self) -> None:
        """Note that what was dispatched waits for something outside: to dispatch it again is no failure of it."""
        self._dispatched = None

    def commit(self, result: StageResult) -> str:
        """Publish a finished stage, or record its refusal; returns the head afterwards. Safe to repeat. Raises
        StaleParent when the head moved since the stage began, StaleSums where its sums are of what was forgotten or
        replaced since: the same attempt is to be learnt again, or, of a stage that improves what is learnt, settled."""
        store = self._writer.store
        if result.version_id in store.tree.versions:
            return store.tree.head
        if result.refusal is not None:
            return self._refuse(result)
        with ExitStack() as copies:
            # Here first: the table's writer cannot wait for an object store in the midst of its own work.
            parts = [copies.enter_context(store.files.local(part)) for part in result.rows]
            rows = StageRows(parts, store.gallery_schema)
            found = up_to_date(self._writer, result)
            artifacts = without_forgotten(
                self._writer, result.version_id, result.parent, found.artifacts, rows
            )
            metrics = dict(found.metrics)
            if result.version_id not in store.ledger.later_attempts:
                waited = time.time() - store.ledger.tasks[result.task].closed_at.timestamp()
                metrics[key("closed_to_learnt_s")] = round(waited, 3)
            self._writer.commit_stage(
                version_id=result.version_id,
                parent=result.parent,
                task=result.task,
                artifacts=artifacts,
                rows=rows,
                metrics=metrics,
                quarantine=result.lost,
            )
        for part in [*result.rows, *(ref.path for n, ref in result.artifacts.items() if artifacts[n] != ref)]:
            store.files.delete(part)
        return result.version_id

    def failed(self, order: StageOrder, error: str, rank: int = 0) -> None:
        """Note that an attempt ended in an unforeseen error; after the third of one rank it is refused."""
        self._dispatched = None
        self._failures[order.version_id, rank] += 1
        if self._failures[order.version_id, rank] == MAX_FAILURES and self.is_current(order.version_id):
            self._refuse_after(order, MAX_FAILURES, error)

    def _refuse(self, result: StageResult) -> str:
        store = self._writer.store
        reason = result.refusal or ""
        log.warning("stage %s of %s is refused: %s", result.version_id, result.task, reason)
        self._writer.refuse(result.version_id, result.task, reason, result.metrics)
        for file in list(store.files.list(f"artifacts/{result.version_id}")):
            # Its rows hold vectors, which must not outlive a request to forget them.
            store.files.delete(file.path)
        if result.version_id not in store.ledger.later_attempts:
            self._gives_up(store.ledger.tasks[result.task])
        return store.tree.head


class StageRows:
    """The parts that the ranks wrote, a few rows in memory at a time, as often as they are gone through."""

    def __init__(self, paths: Sequence[Path], schema: pa.Schema = GALLERY) -> None:
        self._paths, self._schema = paths, schema

    def __iter__(self) -> Iterator[pa.Table]:
        for path in self._paths:
            with pq.ParquetFile(path) as parts:
                for number in range(parts.num_row_groups):  # `iter_batches` would keep what it has read
                    yield parts.read_row_group(number, use_threads=False).cast(self._schema)


def relearn(writer: Writer, task_id: str, anyway: bool) -> None:
    """Let a refused or skipped task be learnt after all; `anyway`: published whatever the gate finds. Raises
    UnknownSubject, and ValueError for a task that is learnt or that holds nothing to learn. Safe to repeat."""
    store, tree = writer.store, writer.tree
    tally = store.ledger.trainable(closed_task(store.ledger, task_id).task_id)
    any_image = False
    if store.form == "exact":
        # A trunk that starts from nothing is to be learnt first, for which a few images are not enough.
        root = tree.root or ""
        made = spec_of(store.artifact(root, STUDENT))
        any_image = made.starts_pretrained or made.takes_vectors or not tree.same_trunk(root, tree.head)
    if not is_trainable(tally, any_image):
        raise ValueError(
            f"{task_id} holds {sum(tally.values())} images of {len(tally)} classes to learn from: {NOTHING}; "
            f"land more images, {'one' if any_image else 'two classes of two images'} at least"
        )
    writer.relearn_task(task_id, anyway)


def waiting_shards(ledger: LedgerState) -> list[WaitingShard]:
    """Return indexed shards without a task in the order of landing, up to the first that is still to be indexed. A task
    depends on the order of landing only: a shard that its indexer finished early waits for those before it."""
    first = next(iter(ledger.landed.values()), None)
    ready = [s for s in ledger.indexed.values() if first is None or s.landed_seq < first.landed_seq]
    return [_waiting(shard) for shard in sorted(ready, key=lambda shard: shard.landed_seq)]


def _settled(ledger: LedgerState) -> Settled:
    """Return names of shards that will not wait again, and the task that has each."""
    return {
        shard.name: shard.task or "failed"
        for shard in ledger.shards.values()
        if shard.state in ("assigned", "set_aside")
    }


def _waiting(shard: ShardState) -> WaitingShard:
    manifest = shard_ref(shard).manifest
    if shard.format == "task" and shard.quarantined:
        manifest = None  # it was refused: what it says closes nothing
    tally, landed = shard.counts.get("trainable", {}), shard.landed_at.timestamp()
    said = (manifest.task, manifest.task_complete, manifest.shards or ()) if manifest else ()
    return WaitingShard(shard.shard_id, shard.name, tally, landed, *said)
