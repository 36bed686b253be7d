"""Follows the stages of a stream for people: each one that ended, and the loss of the one in progress.

Protects: a stage waits for nobody here. What is written follows from the tree of versions, so a writer that was away,
or a driver that was killed, catches up; only points of a loss curve may be lost.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from stream_odml.config.masking import masked_text
from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.observe.stage_writers import (
    BESIDE_DATABASES,
    LossPoint,
    MlflowWriter,
    StageEnd,
    StageWriter,
    TensorBoardWriter,
)
from stream_odml.pipeline.messages import StageProgress
from stream_odml.storage.reading import scheme_of
from stream_odml.store.version_metrics import VersionMetrics
from stream_odml.store.versions import VersionTree

log = logging.getLogger(__name__)
LOOK_S = 1.0
RETRY_S = 30.0
"""Until a writer that failed is tried again."""
MAX_POINTS = 10_000
"""Points of loss curves that wait for a writer; the oldest go first."""
CLOSE_S = 5.0


def open_writers(config: StreamConfig) -> list[StageWriter]:
    """Return the writers that a configuration asks for. Raises ConfigError where the package of one is missing or
    refuses the place."""
    metrics, writers = config.metrics, list[StageWriter]()
    try:
        asked = "tensorboard"
        if metrics.tensorboard is not None:
            # A relative folder lies under a root that is a folder, as every other path of a stream does.
            under = Path() if scheme_of(config.root) else Path(config.root)
            writers.append(TensorBoardWriter(under.absolute() / metrics.tensorboard))
        asked = "mlflow"
        if metrics.mlflow is not None:
            writers.append(MlflowWriter(metrics.mlflow, config.name))
    except ImportError as error:
        package = "mlflow" if error.name in BESIDE_DATABASES else f"'stream-odml[{asked}]'"
        raise ConfigError(
            f"metrics.{asked} needs a library that is not here ({error}): pip install {package}, "
            f"or leave metrics.{asked} out"
        ) from error
    except ValueError as error:
        raise ConfigError(f"metrics.{asked}: {error}") from error
    return writers


def open_journal(config: StreamConfig) -> StageJournal:
    """Return the journal of a stream, begun. A package that is missing where a driver was restarted costs the journal,
    not the stream: `run` has refused to start without it."""
    try:
        writers = open_writers(config)
    except ConfigError as error:
        log.warning("%s", error)
        writers = []
    return StageJournal(writers)


class StageJournal:
    """Writes in a thread of its own; `report` and `follow` return at once."""

    def __init__(self, writers: Sequence[StageWriter]) -> None:
        self._tree: VersionTree | None = None
        self._stop = threading.Event()
        self._pending = [_PendingWrites(writer) for writer in writers]
        self._thread = threading.Thread(target=self._run, name="stage journal", daemon=True)
        if self._pending:
            self._thread.start()

    def report(self, progress: StageProgress) -> None:
        """Note the loss of the stage in progress."""
        losses = {part: value for part, value in progress.losses.items() if math.isfinite(value)}
        if losses and progress.version:
            for pending in self._pending:
                pending.points.append(LossPoint(progress.version, progress.step, time.time(), losses))

    def follow(self, tree: VersionTree) -> None:
        """Let all stages that ended by now be written."""
        self._tree = tree

    def close(self) -> None:
        """Write what is left, unless that takes long."""
        self._stop.set()
        if self._pending:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while True:
            is_last = self._stop.wait(LOOK_S)
            for pending in self._pending:
                pending.catch_up(self._tree, is_last)
            if is_last:
                return


class _PendingWrites:
    """One writer, and what it still has to write."""

    def __init__(self, writer: StageWriter) -> None:
        self.points: deque[LossPoint] = deque(maxlen=MAX_POINTS)
        self._writer, self._written, self._due = writer, set[str](), 0.0
        self._is_known, self._said, self._seq = False, "", -1

    def catch_up(self, tree: VersionTree | None, is_last: bool) -> None:
        """Write everything that waits; what fails waits for the next time."""
        if time.monotonic() < self._due:
            return
        try:
            if not self._is_known:
                self._written |= self._writer.written()
                self._is_known = True
            self._writer.losses([self.points.popleft() for _ in range(len(self.points))])
            if tree is not None and tree.seq != self._seq:
                for stage in stages_ended(tree):
                    if stage.version not in self._written:
                        self._writer.end(stage)
                        self._written.add(stage.version)
                self._seq = tree.seq
            if is_last:
                self._writer.close()
            self._said = ""
        except Exception as error:  # whatever a library or a server does: the stream goes on
            problem = masked_text(f"{type(error).__name__}: {error}".splitlines()[0])
            self._due = time.monotonic() + RETRY_S
            if problem != self._said:
                log.warning("%s cannot write, tried again: %s", type(self._writer).__name__, problem)
            self._said = problem


def stages_ended(tree: VersionTree) -> Iterator[StageEnd]:
    """Yield every stage that was published or refused, each kind in the order of its end."""
    for version in tree.versions.values():
        if version.parent is not None:
            yield StageEnd(
                version=version.version_id, task=version.task or "", parent=version.parent, depth=version.depth,
                time=version.time.timestamp(), figures=VersionMetrics.read(version.metrics).scalars(),
            )  # fmt: skip
    for refusal in tree.refusals:
        parent = tree.versions.get(refusal.parent or "")
        yield StageEnd(
            version=refusal.version_id, task=refusal.task or "", parent=refusal.parent or "",
            depth=parent.depth + 1 if parent else 0, time=refusal.time.timestamp(),
            figures=VersionMetrics.read(refusal.metrics).scalars(), reason=refusal.reason,
        )  # fmt: skip
