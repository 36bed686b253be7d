"""The driver actor: finds what lands, closes tasks, makes every commit, and never touches an image.

Protects: one writer. All state is in the store; what is here can be lost at any instant and is rebuilt from there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from typing import Any, Literal

import ray
import ray.util

from stream_odml.cluster.actors import indexer_handles
from stream_odml.cluster.head_solver import FastStages
from stream_odml.cluster.ingestion import Discovery, Ingestion
from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.shard import ShardRef
from stream_odml.observe.logs import about
from stream_odml.observe.observing import observe
from stream_odml.observe.plain import plain
from stream_odml.observe.targets import announce, reachable, targets_folder, withdraw
from stream_odml.observe.tracing import span
from stream_odml.pipeline.erasure_request import find_subject
from stream_odml.pipeline.figures import stream_figures
from stream_odml.pipeline.late_erasure import StaleSums
from stream_odml.pipeline.later_stages import LaterRules
from stream_odml.pipeline.messages import Instruction, StageOrder, StageProgress, StageResult
from stream_odml.pipeline.metrics import DriverMetrics
from stream_odml.pipeline.pushed import move_back
from stream_odml.pipeline.sources import open_sources
from stream_odml.pipeline.stage_journal import open_journal
from stream_odml.pipeline.stages import Stages, relearn
from stream_odml.pipeline.tidying import Tidying
from stream_odml.storage.refusals import trouble_words
from stream_odml.store.errors import RootBusy, StaleParent, WriterFenced
from stream_odml.store.sequence import sequence_of
from stream_odml.store.version_metrics import VersionMetrics
from stream_odml.store.writer import Writer

log = logging.getLogger(__name__)
BEAT_S = 0.1
POLL_S = 4.0
"""Longest that a trainer's question for work stays open."""
FIGURES_S = 1.0
HOLD_S = 300.0
"""Longest that fast stages wait for a stage that has to settle again because they overtook it."""
STATUS_WAIT_S = 0.5
"""Longest that status waits for a commit in progress before it tells the figures of before."""


class StreamDriver:
    """Ray actor with several threads: one loop takes shards in, the others answer trainer, service and people."""

    def __init__(self, config_json: str, takeover: bool = False) -> None:
        # Plain values: arguments that live in the object store would be lost with the process that put them there.
        config = StreamConfig.model_validate_json(config_json)
        observe(config, "driver")
        self._config = config
        self._writer = _claim(config, takeover)
        self._landing: list[ShardRef] | None = None
        self._lock = threading.RLock()
        self._work_came = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._tidying = Tidying(self._writer, config, self._lock, self._fenced)
        indexers, rules = indexer_handles(config.cluster.indexers), LaterRules.of(config)
        self._ingestion = Ingestion(self._writer, indexers, config.ingest, self._tidying.erase_soon)
        self._stages = Stages(self._writer, config.boundary, config.gate.retries, config.learns_trunk, rules)
        self._fast = FastStages(config, self._stages)
        if config.solves_head:
            self._fast.start()
        self._discovery = Discovery(open_sources(config), self._writer.store, config.source.poll_s)
        self._metrics = DriverMetrics()
        self._journal = open_journal(config)
        self._figures_due = 0.0
        self._waits: list[str] = []
        self._problem = ""
        self._training_problem = ""
        self._commit_failures = self._stages_deferred = 0
        self.metrics_address = self._export(config)
        self._discovery.start()
        self._loop = threading.Thread(target=self._run, name="ingestion", daemon=True)
        self._loop.start()
        self._tidying.start()

    def stream_id(self) -> str:
        """Return the stream that this driver writes."""
        return self._writer.store.stream_id

    # -- indexing -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._beat()
                self._problem = ""
            except WriterFenced as error:
                self._fenced(error)
            except Exception as error:
                # A full or unreachable disk, say: nothing is lost, so tell and go on trying.
                self._commit_failures += 1
                self._problem = trouble_words(error)
                log.exception("cannot commit: %s", self._problem)
                self._stop.wait(1.0)

    def _beat(self) -> None:
        if self._writer.is_lost:
            raise WriterFenced("another run has taken the stream root over")
        self._ingestion.gather(BEAT_S)
        with self._lock:
            while (refs := self._landing or self._discovery.take()) is not None:
                self._landing = refs  # kept until it is ledgered: discovery will not name it again
                self._ingestion.land(refs)
                self._landing = None
            began = time.perf_counter()
            committed = self._ingestion.commit()
            if committed:
                self._metrics.commit.labels("ingest").observe(time.perf_counter() - began)
                now = time.time()
                for shard in committed:
                    with about(shard=shard.shard_id):
                        log.info("indexed: %d rows, %d quarantined", shard.rows, shard.quarantined)
                    self._metrics.searchable.observe(max(0.0, now - shard.landed_at.timestamp()))
            self._ingestion.dispatch(self._writer.store.tree.head)
            if self._stages.close_tasks():
                self._work_came.notify_all()
            if (solved := self._fast.gather()) is not None:
                self.commit_stage(solved)
                self._work_came.notify_all()
            self._fast.dispatch()
            self._refresh_figures()

    def _refresh_figures(self, force: bool = False) -> None:
        if force or time.monotonic() >= self._figures_due:
            figures = stream_figures(self._writer.store, self._writer.epoch)
            retries = {
                "list": self._discovery.failures,
                "read": self._ingestion.unreachable,
                "commit": self._commit_failures,
                "stage": self._stages_deferred,
            }
            self._metrics.figures = replace(figures, retries=retries, logs=self._discovery.figures())
            self._journal.follow(self._writer.store.tree)
            self._figures_due = time.monotonic() + FIGURES_S

    def _fenced(self, error: WriterFenced) -> None:
        # A newer writer owns the root. Ending for good is all that is left: a restart would only fight with it.
        log.error("fenced: %s", error)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
        os._exit(3)

    # -- learning -----------------------------------------------------------------------------------------------

    def next_instruction(self) -> Instruction:
        """Return what rank 0 does next; waits a few seconds for a task to close."""
        deadline = time.monotonic() + POLL_S
        done, self._metrics.progress = self._metrics.progress, StageProgress()  # who asks is idle
        with self._work_came:
            while not self._stop.is_set():
                order = self._stages.dispatch(done)
                if order is not None or time.monotonic() >= deadline:
                    return Instruction(order)
                self._work_came.wait(timeout=0.5)
        return Instruction(stop=True)

    def report(self, progress: StageProgress) -> bool:
        """Note the progress of the running stage; False when it should stop: its parent is not the head any
        more, or the stream ends."""
        self._metrics.report(progress)
        self._journal.report(progress)
        with self._lock:
            is_current = not progress.version or self._stages.is_current(progress.version)
        return is_current and not self._stop.is_set()

    def commit_stage(self, result: StageResult) -> str:
        """Commit or refuse a finished stage and return the head. A stage whose parent is not the head is dropped; one
        that improves what is learnt settles again, and no fast stage is begun until it has."""
        began = time.perf_counter()
        with self._lock, about(stage=result.version_id), span("stage.commit", result.version_id):
            try:
                head = self._stages.commit(result)
            except (StaleParent, StaleSums) as error:
                current = self._stages.is_current(result.version_id)
                what = "to be repeated" if current else "dropped"
                log.warning("stage %s is %s: %s", result.version_id, what, error)
                if current and result.version_id in self._writer.ledger.later_attempts:
                    self._fast.hold(HOLD_S)
                return self._writer.store.tree.head
            self._training_problem = ""
            if result.version_id in self._writer.ledger.later_attempts:
                self._fast.hold(0.0)
            self._refresh_figures(force=True)
            if (version := self._writer.tree.versions.get(result.version_id)) is not None:
                waited = VersionMetrics.read(version.metrics).closed_to_learnt_s
                if waited is not None:
                    self._metrics.closed_to_learnt.observe(waited)
            log.info("stage of %s ended; head is %s", result.task, head)
        self._metrics.commit.labels("stage").observe(time.perf_counter() - began)
        return head

    def stage_deferred(self, reason: str) -> None:
        """Dispatch a stage again that waits for unreachable images, without counting a failure."""
        with self._lock:
            self._training_problem = reason
            self._stages_deferred += 1
            self._stages.deferred()

    def stage_failed(self, order: StageOrder, error: str, rank: int) -> None:
        """Note an error of the trainer, where people look, and give the attempt up when it keeps coming."""
        with self._lock, about(stage=order.version_id):
            log.error("stage failed on rank %d: %s", rank, error)
            self._training_problem = error
            self._stages.failed(order, error, rank)

    # -- people -------------------------------------------------------------------------------------------------

    def request_rollback(self, version_id: str, relearn: bool = True) -> dict[str, Any]:
        """Move the head. Tasks learnt only on the branch left behind are learnt again, or skipped."""
        with self._lock:
            version_id = self._writer.store.tree.named(version_id)
            due = move_back(self._writer, self._tidying.pushed, version_id, relearn)
            self._refresh_figures(force=True)
            return {"head": version_id, "tasks_to_relearn": due, "sequence": _sequence(self._writer)}

    def request_relearn(self, task_id: str, anyway: bool = False) -> dict[str, Any]:
        """Learn a refused or skipped task after all, once those that wait are learnt."""
        with self._work_came:
            relearn(self._writer, task_id, anyway)
            self._work_came.notify_all()
            self._refresh_figures(force=True)
        return {"task": task_id, "anyway": anyway}

    def request_forget(self, kind: Literal["class", "item", "shard"], name: str) -> dict[str, Any]:
        """Forget a class, an item or a shard: hidden at once, deleted with all older table files within a minute.
        Raises UnknownSubject for a name that covers nothing."""
        with self._lock:
            with self._writer.exclusive() as store:
                subject = store.again(lambda: find_subject(store, kind, name))
            self._writer.forget(subject.kind, subject.name, subject.items)
            self._tidying.erase_soon()
            self._refresh_figures(force=True)
            sequence = _sequence(self._writer)
        return {"forgotten": subject.name, "kind": kind, "items": subject.items, "sequence": sequence}

    def status(self) -> dict[str, Any]:
        """Return everything a person asks first, as plain values."""
        # A commit to a slow store must not make the driver look dead: then this tells what was known before it.
        if self._lock.acquire(timeout=STATUS_WAIT_S):
            try:
                self._refresh_figures(force=True)
                self._waits = self._stages.explain() + self._discovery.notes
            finally:
                self._lock.release()
        figures, progress, waits = self._metrics.figures, self._metrics.progress, self._waits
        if (solving := self._fast.order) is not None:
            progress = StageProgress("solving", solving.task, solving.version_id, solving.depth)
        status = {
            "stream": self._config.name,
            "pid": os.getpid(),
            "metrics_address": self.metrics_address,
            "problem": self._problem
            or self._ingestion.problem
            or self._discovery.error
            or self._tidying.problem
            or self._training_problem
            or self._fast.problem
            or None,
            "open_task": waits,
            "stage": progress,
        }
        return {**plain(status), **plain(figures.as_status())}

    def drain(self) -> None:
        """Tell the trainer to record its progress and end, and stop indexing."""
        self._stop.set()
        self._discovery.stop()
        self._tidying.stop()
        self._loop.join(timeout=30)
        with self._work_came:
            self._work_came.notify_all()

    def close(self) -> None:
        """Give the stream root back. Call after `drain`."""
        with self._lock:
            self._writer.release()
        self._journal.close()
        withdraw(self._targets)

    def _export(self, config: StreamConfig) -> str:
        """Start the exporter, and let Prometheus know where: host:port."""
        port = self._metrics.serve(config.metrics.port, config.metrics.host)
        address = f"{reachable(config.metrics.host, ray.util.get_node_ip_address())}:{port}"
        folder = targets_folder(config.root, config.metrics.targets_dir)
        self._targets = None if folder is None else announce(folder, "driver", address, {})
        return address


def _sequence(writer: Writer) -> int:
    """Return what a replica has to reach to show all that was committed here: `min_seq` of a search."""
    return sequence_of(writer.ledger.seq, writer.tree.seq)


def _claim(config: StreamConfig, takeover: bool) -> Writer:
    """Become the writer. A driver that Ray restarted, perhaps on another node, outwaits its own former lease."""
    again = bool(ray.get_runtime_context().was_current_actor_reconstructed)
    deadline = time.monotonic() + (2 * config.store.lease_s if again else 0.0)
    while True:
        try:
            return Writer.claim(
                config.root,
                f"stream {config.name}",
                takeover=takeover and not again,
                storage_options=config.storage_options,
                lease_s=config.store.lease_s,
            )
        except RootBusy:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.5)
