"""The fast stages of a stream: the driver hands them to a warm process of their own, one at a time.

Protects: what that process gives is only a result; it is committed by the driver, under its lock and its epoch, as that
of a slow stage is. Whatever ends at whatever moment, the attempt in the ledger is taken up again.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from deltalake.exceptions import DeltaError

from stream_odml.cluster.runtime import INDEXING_NICENESS, NAMESPACE, lower_priority
from stream_odml.config.stream import StreamConfig
from stream_odml.learn.lift import Lift
from stream_odml.observe.logs import about
from stream_odml.observe.observing import observe
from stream_odml.observe.tracing import span
from stream_odml.pipeline.messages import StageOrder, StageResult
from stream_odml.pipeline.stages import Stages
from stream_odml.store.store import Store
from stream_odml.wording import last_line

log = logging.getLogger(__name__)
SOLVER_NAME = "HeadSolver"
RETRY_S = 2.0
"""Pause after a failure that may fix itself."""
LOOK_AHEAD_S = 0.5
FEW_ROWS = 1024
"""Waiting rows under which the solver is not asked to sum them ahead."""


class HeadSolver:
    """Ray actor without state but for the store as it was last read. Loads no torch."""

    def __init__(self, config_json: str) -> None:
        # Here, and not in the driver that names this class: what a fast stage needs takes a second to load.
        from stream_odml.pipeline.fast_stage import fast_stage
        from stream_odml.pipeline.sums_ahead import SumsAhead

        self._config = StreamConfig.model_validate_json(config_json)
        lower_priority(INDEXING_NICENESS)
        observe(self._config, "solver")
        self._stage, self._ahead = fast_stage, SumsAhead()
        self._store: Store | None = None

    def solve(self, order: StageOrder) -> StageResult:
        """Learn the task of `order`, from the store as it is now."""
        with about(stage=order.version_id), span("stage.solve", order.version_id, task=order.task):
            return self._stage(self._now(), order, self._config, self._ahead)

    def sum_ahead(self) -> int:
        """Sum some of the items that wait for their task; return how many. Nothing depends on it but time."""
        store, config = self._now(), self._config
        return self._ahead.add(store, Lift(store.dim, config.model.lift_of(store.dim), config.seed))

    def _now(self) -> Store:
        if self._store is None:
            self._store = Store.open(self._config.root, self._config.storage_options)
        self._store.refresh()
        return self._store


class FastStages:
    """Not thread-safe: the driver calls it from its one loop, under its lock."""

    def __init__(self, config: StreamConfig, stages: Stages) -> None:
        self._config, self._stages = config, stages
        self._actor: Any = None
        self._call: Any = None
        self.order: StageOrder | None = None
        """The fast stage that is being solved."""
        self._not_before = self._held_until = 0.0
        self._ahead: Any = None
        self._ahead_of = 0
        self._look_ahead_at = 0.0
        self.problem = ""

    def start(self) -> None:
        """Have a warm process ready. No CPU is reserved for it: it works for seconds, and a task of a stream whose
        CPUs are all reserved could never begin."""
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(HeadSolver)
        options = actor.options(name=SOLVER_NAME, namespace=NAMESPACE, get_if_exists=True)
        self._actor = options.remote(self._config.model_dump_json())

    def hold(self, seconds: float) -> None:
        """Begin no stage for so long, or from now on again (0)."""
        self._held_until = time.monotonic() + seconds

    def dispatch(self) -> None:
        """Hand the next task to the solver, if it is free and the task needs no trainer."""
        waits = max(self._not_before, self._held_until)
        if self.order is not None or self._actor is None or time.monotonic() < waits:
            return
        order = self._stages.solve_next()
        if order is not None:
            self.order, self._call = order, self._actor.solve.remote(order)
        else:
            self._sum_ahead()

    def _sum_ahead(self) -> None:
        """Let the idle solver sum what waits: again as long as it found something, then when more has come."""
        if time.monotonic() < self._look_ahead_at:
            return
        if self._ahead is not None:
            if not ray.wait([self._ahead], timeout=0)[0]:
                return
            try:
                found = ray.get(self._ahead)
            except ray.exceptions.RayError as error:
                log.warning("items that wait could not be summed ahead: %s", error)
                found = 0
            self._ahead = None
            if found:
                self._ahead_of = 0
        waiting = self._stages.rows_for_a_head()
        if waiting >= FEW_ROWS and waiting != self._ahead_of:
            self._ahead_of, self._ahead = waiting, self._actor.sum_ahead.remote()
        self._look_ahead_at = time.monotonic() + LOOK_AHEAD_S

    def gather(self) -> StageResult | None:
        """Return what the solver has finished since, or None. Count a failure, and dispatch the attempt again."""
        if self.order is None or not ray.wait([self._call], timeout=0)[0]:
            return None
        order, call, self.order, self._call = self.order, self._call, None, None
        try:
            result: StageResult = ray.get(call)
        except ray.exceptions.RayError as error:
            self._failed(order, error)
            return None
        self.problem = ""
        return result

    def _failed(self, order: StageOrder, error: Exception) -> None:
        cause = getattr(error, "cause", None) or error
        self.problem = f"{order.task}: {type(cause).__name__}: {last_line(str(cause))}"
        log.error("fast stage of %s failed: %s", order.task, error)
        self._not_before = time.monotonic() + RETRY_S
        if not isinstance(cause, OSError | DeltaError):  # an unreachable store is no fault of the task
            self._stages.failed(order, self.problem)
