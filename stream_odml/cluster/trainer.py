"""The long-lived training run: one Ray Train `fit()` whose workers take one stage after another.

Protects: what a stage learns is a function of its order, the store and the seed; a killed worker takes the stage
up again from its last recorded step, and on one world size it ends in the same weights.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from deltalake.exceptions import DeltaError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file, save_file

from stream_odml.cluster.actors import DriverGone, call_driver, driver_handle
from stream_odml.cluster.local_ranks import LocalRanks
from stream_odml.cluster.ray_compat import is_lost_peer
from stream_odml.cluster.reading import RayReaders
from stream_odml.cluster.runtime import LEARNING_NICENESS, lower_priority
from stream_odml.config.stream import StreamConfig
from stream_odml.learn.memory import give_back_memory, keep_freed_memory
from stream_odml.learn.world import World
from stream_odml.observe.logs import about
from stream_odml.observe.observing import observe
from stream_odml.observe.profiling import profiled
from stream_odml.observe.tracing import span
from stream_odml.pipeline.messages import Instruction, StageOrder, StageProgress, StageResult
from stream_odml.pipeline.stage_folders import cache_root, emptied, keep_only
from stream_odml.pipeline.stage_run import StageDeferred, StageFailed, StageRun
from stream_odml.storage.files import open_files
from stream_odml.storage.reading import is_remote, s3_filesystem, s3_path, scheme_of
from stream_odml.store.store import Store

log = logging.getLogger(__name__)
LOOK_EVERY = 10
"""Steps between two looks at the clock and at the driver."""
REPORT_S = 0.5


def build_trainer(config: StreamConfig) -> TorchTrainer:
    """Return the trainer of a stream; the caller runs `.fit()`, which returns when the driver says stop."""
    cluster = config.cluster
    workers: int | tuple[int, int] = cluster.workers
    if cluster.min_workers is not None and cluster.min_workers < cluster.workers:
        workers = (cluster.min_workers, cluster.workers)
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    progress = progress_path(config)
    return TorchTrainer(
        train_stages,
        train_loop_config={"config": config.model_dump_json()},
        torch_config=LocalRanks(),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker=resources,
            label_selector=dict(cluster.worker_labels) or None,
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=s3_path(progress) if is_remote(progress) else progress,
            # Ours: Ray's own takes its keys and its endpoint from the environment alone.
            storage_filesystem=s3_filesystem(config.storage_options) if is_remote(progress) else None,
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def progress_path(config: StreamConfig) -> str:
    """Return where mid-stage progress is kept: beside the tables, so that every node that sees them sees it."""
    root = config.root.rstrip("/")
    return f"{root}/progress" if scheme_of(root) else str(Path(root).absolute() / "progress")


def train_stages(settings: dict[str, Any]) -> None:
    """Ask, learn and hand over until the driver says stop: the train function of every worker."""
    config = StreamConfig.model_validate_json(settings["config"])
    observe(config, f"worker-{ray.train.get_context().get_world_rank()}")
    worker = _Worker(config)
    while (order := worker.next_order()) is not None:
        with about(stage=order.version_id), span("stage", order.version_id, task=order.task):
            worker.learn(order)


class _Worker:
    def __init__(self, config: StreamConfig) -> None:
        lower_priority(LEARNING_NICENESS)
        keep_freed_memory()
        context = ray.train.get_context()
        device = ray.train.torch.get_device()
        if device.type == "cpu":
            torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
        self.config = config
        self.world = World.current(device)
        self.node, self.leads_node = context.get_node_rank(), context.get_local_rank() == 0
        self.readers = RayReaders(config.cluster.cpus_per_read)
        self.profile_steps = config.observe.profile_steps if self.world.rank == 0 else 0
        # Kept from stage to stage: each then reads only what was committed since the one before.
        self.store = Store.open(config.root, config.storage_options, keep_gallery=False)
        self._is_warm = self.world.rank > 0
        if ray.train.get_checkpoint() is None:
            self._warm_up()

    def next_order(self) -> StageOrder | None:
        """Return the next stage, the same on every rank; None to end. Ranks meet here every few seconds while idle."""
        while True:
            asked = call_driver("next_instruction") if self.world.rank == 0 else None
            instruction: Instruction = self._from_rank_zero(asked)
            # All ranks are here, so none is at another stage.
            if self.leads_node:
                keep_only(cache_root(self.config, self.store.stream_id), instruction.order)
            if instruction.stop:
                return None
            if instruction.order is not None:
                return instruction.order
            self._warm_up()

    def _warm_up(self) -> None:
        """Load what reading needs, before a first task or while idle: who comes back into a stage cannot wait."""
        if not self._is_warm:
            self.readers.warm_up()
        self._is_warm = True

    def learn(self, order: StageOrder) -> None:
        """Learn one stage, from cache to commit. A failure that repeating would not fix becomes a refusal."""
        self.store.refresh()
        self.reporter = _Reporter(self.world)
        report = self.reporter.report
        run = StageRun(
            self.config,
            order,
            self.store,
            self.world,
            report,
            self.readers,
            node=self.node,
            leads=self.leads_node,
        )
        try:
            with self._part("open", order):
                run.open()
                self._resume(run, order)
            with self._part("steps", order):
                if not self._steps(run):
                    return  # its progress is recorded: the same attempt, if it comes again, goes on from there
            with self._part("finish", order):
                result = run.finish()
        except StageDeferred as reason:
            if self.world.rank == 0:
                call_driver("stage_deferred", str(reason))
            return
        except StageFailed as failure:
            result = StageResult(order.version_id, order.parent, order.task, refusal=str(failure))
        while self._hand_over(order, result):
            with self._part("settle", order):
                result = run.settle()
        if self.world.rank == 0:
            self.reporter.report(StageProgress())
        if self.world.size > 1:
            dist.barrier()
        run.close()
        give_back_memory()

    @contextlib.contextmanager
    def _part(self, name: str, order: StageOrder) -> Iterator[None]:
        """Trace a part of a stage, and report an error that nobody foresaw. Ray Train starts the workers again; the
        driver gives the attempt up when that does not help."""
        try:
            with span(f"stage.{name}", order.version_id):
                yield
        except (StageDeferred, StageFailed):
            raise
        except Exception as error:
            log.exception("stage %s failed", order.version_id)
            why = f"{type(error).__name__}: {error}"
            # An unreachable store: waited for, and no fault of the stage.
            if isinstance(error, OSError | DeltaError):
                call_driver("stage_deferred", why)
            elif not is_loss_of_a_process(error):
                call_driver("stage_failed", order, why, self.world.rank)
            raise

    def _hand_over(self, order: StageOrder, result: StageResult) -> bool:
        """Give the driver the result; whether the head had moved, under which it has to be settled again."""
        again = False
        if self.world.rank == 0:
            self.reporter.report(StageProgress("committing", order.task, order.version_id, order.depth))
            call_driver("commit_stage", result)
            if order.improves and result.refusal is None:
                self.store.refresh()
                again = self.store.open_attempt(order.version_id) is not None
        return bool(self._from_rank_zero(again))

    def _steps(self, run: StageRun) -> bool:
        """Make all remaining steps; return False when the driver wants no more of them."""
        recorded = time.monotonic()
        learner = run.learner
        with self._profiled(run) as stepped:
            while learner.next_step < learner.total_steps:
                run.step()
                stepped()
                if learner.next_step % LOOK_EVERY:
                    continue
                due = time.monotonic() - recorded >= self.config.cluster.checkpoint_s
                due, wanted = self._from_rank_zero((due, self.reporter.is_wanted))
                if due or not wanted:
                    self._record(run)
                    recorded = time.monotonic()
                if not wanted:
                    return False
        return True

    def _profiled(self, run: StageRun) -> AbstractContextManager[Callable[[], None]]:
        """Return a profile of the first stage that this worker learns, where the configuration asks for one."""
        steps, self.profile_steps = self.profile_steps, 0
        files = open_files(self.config.root, self.config.storage_options)
        return profiled(steps, files.write, run.order.version_id) if steps else nullcontext(lambda: None)

    def _record(self, run: StageRun) -> None:
        done = {"step": run.learner.next_step}
        if self.world.rank:
            ray.train.report(done, checkpoint=None)
            return
        with emptied(run.rank_folder) as folder:
            save_file(run.learner.state_dict(), folder / "progress.safetensors")
            (folder / "version_id").write_text(run.order.version_id)
            ray.train.report(done, checkpoint=Checkpoint.from_directory(folder))

    def _resume(self, run: StageRun, order: StageOrder) -> None:
        # Rank 0's for all: the others may know of an older one only.
        checkpoint = self._from_rank_zero(ray.train.get_checkpoint())
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            if (Path(folder) / "version_id").read_text() == order.version_id:
                run.learner.load_state_dict(load_file(Path(folder) / "progress.safetensors"))
                log.info("stage %s goes on at step %d", order.version_id, run.learner.next_step)

    def _from_rank_zero(self, value: Any) -> Any:
        shared = [value]
        if self.world.size > 1:
            dist.broadcast_object_list(shared, src=0, device=self.world.device)
        return shared[0]


def is_loss_of_a_process(error: BaseException) -> bool:
    """Return whether another process went (a peer, a reading task, a node): nothing that this stage did wrong. A peer
    that failed by itself tells its own error."""
    lost = (ray.exceptions.RayError, dist.DistError, DriverGone)
    went = isinstance(error, lost) and not isinstance(error, ray.exceptions.RayTaskError)
    return went or is_lost_peer(error)


class _Reporter:
    """Tells the driver how a stage goes, at most twice a second and without waiting for its answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._answer: Any = None
        self._sent = 0.0
        self._steps: list[float] = []
        self._waits: list[float] = []
        self.is_wanted = True

    def report(self, progress: StageProgress) -> None:
        """Send `progress` (rank 0 only); durations of what is not sent are kept for the next report."""
        if self._world.rank:
            return
        self._steps += progress.step_s
        self._waits += progress.data_wait_s
        urgent = progress.phase != "training" or progress.first_step_s is not None
        if not urgent and time.monotonic() - self._sent < REPORT_S:
            return
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self.is_wanted = True
            # It is restarting: progress is only for the eye.
            with contextlib.suppress(ray.exceptions.RayError):
                self.is_wanted = bool(ray.get(self._answer))
        full = replace(
            progress,
            step_s=tuple(self._steps),
            data_wait_s=tuple(self._waits),
            workers=self._world.size,
            leader=f"{platform.node()}:{os.getpid()}",
        )
        self._steps, self._waits, self._sent = [], [], time.monotonic()
        self._answer = driver_handle().report.remote(full)
