"""What becomes of each stage, where people who train models look already: TensorBoard and MLflow.

Protects: a stage is written once. What was written before is found again at the place itself, so nothing is remembered
here, and a process that was killed half-way writes that stage again.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

VERSION_TAG, OUTCOME_TAG = "stream_odml.version", "stream_odml.outcome"
PUBLISHED, REFUSED = "published", "refused"
MAX_METRICS = 1000
"""Metrics that MLflow takes at once."""
MAX_TAG = 5000
"""Characters that MLflow takes in a tag."""
MLFLOW_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
BESIDE_DATABASES = ("sqlalchemy", "alembic")
"""What MLflow's small package leaves out, and needs where runs are kept in a database and not by a server."""


@dataclass(frozen=True, kw_only=True)
class StageEnd:
    """A stage that was published, or refused with a `reason`."""

    version: str
    task: str
    parent: str
    depth: int
    """Of the version in its tree: the step under which its figures are written."""
    time: float
    """Seconds since the epoch."""
    figures: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None

    @property
    def outcome(self) -> str:
        """Return `published` or `refused`."""
        return PUBLISHED if self.reason is None else REFUSED


@dataclass(frozen=True)
class LossPoint:
    """The parts of the loss at one step of the stage that is to become `version`."""

    version: str
    step: int
    time: float
    losses: Mapping[str, float]


class StageWriter(Protocol):
    """A place that stages are written to. Whatever a method raises, the stage goes on."""

    def written(self) -> set[str]:
        """Return the versions whose end is written there already."""
        ...

    def losses(self, points: Iterable[LossPoint]) -> None:
        """Write points of the loss curves."""
        ...

    def end(self, stage: StageEnd) -> None:
        """Write what became of a stage."""
        ...

    def close(self) -> None:
        """Write what is held back."""
        ...


class TensorBoardWriter:
    """Event files under a folder: the figures of all published stages as one run, of all refused ones as another, and
    a run for the loss curve of each stage."""

    def __init__(self, folder: Path) -> None:
        """Raise ImportError where the package `tensorboard` is not installed."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._make = folder, SummaryWriter
        self._curve: tuple[str, Any] | None = None

    def written(self) -> set[str]:
        """Return the versions that have an event file of their own."""
        files = (file.name for outcome in (PUBLISHED, REFUSED) for file in (self._folder / outcome).glob("*"))
        return {name.split(".", 5)[-1] for name in files}

    def losses(self, points: Iterable[LossPoint]) -> None:
        """Append to the curve of each stage."""
        for point in points:
            writer = self._curve_of(point.version)
            for part, value in point.losses.items():
                writer.add_scalar(f"loss/{part}", value, point.step, point.time)
        if self._curve is not None:
            self._curve[1].flush()

    def _curve_of(self, version: str) -> Any:
        if self._curve is None or self._curve[0] != version:
            self.close()
            self._curve = version, self._make(str(self._folder / "loss" / version))
        return self._curve[1]

    def end(self, stage: StageEnd) -> None:
        """Write one event file, whole or not at all; files of a run are read in the order of their names."""
        run = self._folder / stage.outcome
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as aside:
            writer = self._make(aside)
            for name, value in stage.figures.items():
                writer.add_scalar(name, value, stage.depth, stage.time)
            text = f"`{stage.version}` after `{stage.parent}`, {stage.task}: {stage.reason or stage.outcome}"
            writer.add_text("stage", text, stage.depth, stage.time)
            writer.close()
            (made,) = Path(aside).iterdir()
            os.replace(
                made, run / f"events.out.tfevents.{int(stage.time):010d}.{stage.depth:05d}.{stage.version}"
            )

    def close(self) -> None:
        """End the curve in progress."""
        if self._curve is not None:
            self._curve[1].close()
            self._curve = None


class MlflowWriter:
    """A run for each stage in the experiment named like the stream; a refused stage is a failed run."""

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        """Raise ImportError where neither `mlflow` nor `mlflow-skinny` is installed, or, for a database in place of a
        server, not all of `mlflow`; ValueError for a folder that MLflow does not take. Asks a server of nothing yet."""
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        kind = urlsplit(tracking_uri).scheme.partition("+")[0]
        if kind in MLFLOW_DATABASES:
            for name in BESIDE_DATABASES:
                importlib.import_module(name)
        if kind in ("", "file"):
            try:
                MlflowClient(tracking_uri)
            except Exception as error:  # an exception of MLflow's own, which has no name in every release
                raise ValueError(
                    f"MLflow does not keep runs in the folder {tracking_uri!r} "
                    f"({str(error).partition('. ')[0]}): name a server or a database (sqlite:///mlflow.db), "
                    "or set MLFLOW_ALLOW_FILE_STORE=true for the driver"
                ) from error

        self._uri, self._experiment, self._entities = tracking_uri, experiment, entities
        self._make, self._client = MlflowClient, None
        self._runs: dict[str, str] = {}

    def written(self) -> set[str]:
        """Return the versions whose run has ended."""
        ended, token = set(), None
        while True:
            found = self._server.search_runs([self._experiment_id], page_token=token)
            for run in found:
                if version := run.data.tags.get(VERSION_TAG):
                    self._runs[version] = run.info.run_id
                    if run.info.status in ("FINISHED", "FAILED"):
                        ended.add(version)
            if not (token := found.token):
                return ended

    @property
    def _server(self) -> Any:
        """A client of it; by making one MLflow may already ask the server."""
        if self._client is None:
            client: Any = self._make(tracking_uri=self._uri)
            known = client.get_experiment_by_name(self._experiment)
            self._experiment_id = known.experiment_id if known else client.create_experiment(self._experiment)
            self._client = client
        return self._client

    def losses(self, points: Iterable[LossPoint]) -> None:
        """Append to the runs of the stages."""
        by_version: dict[str, list[Any]] = {}
        for point in points:
            named = {f"loss/{part}": value for part, value in point.losses.items()}
            by_version.setdefault(point.version, []).extend(self._metrics(named, point.time, point.step))
        for version, metrics in by_version.items():
            self._log(self._run(version), metrics)

    def end(self, stage: StageEnd) -> None:
        """Complete the run of a stage; its status is set last, so that half of this is done again."""
        run = self._run(stage.version)
        self._log(run, self._metrics(stage.figures, stage.time, stage.depth))
        tags = {"task": stage.task, "parent": stage.parent, "outcome": stage.outcome, "reason": stage.reason}
        for name, value in tags.items():
            if value:
                self._server.set_tag(run, f"stream_odml.{name}", value[:MAX_TAG])
        status = "FINISHED" if stage.reason is None else "FAILED"
        self._server.set_terminated(run, status, int(stage.time * 1000))

    def close(self) -> None:
        """Do nothing: all is sent at once."""

    def _metrics(self, figures: Mapping[str, float], time: float, step: int) -> list[Any]:
        return [self._entities.Metric(name, value, int(time * 1000), step) for name, value in figures.items()]

    def _log(self, run: str, metrics: list[Any]) -> None:
        for at in range(0, len(metrics), MAX_METRICS):
            self._server.log_batch(run, metrics=metrics[at : at + MAX_METRICS])

    def _run(self, version: str) -> str:
        if version not in self._runs:
            server = self._server
            made = server.create_run(self._experiment_id, tags={VERSION_TAG: version}, run_name=version)
            self._runs[version] = made.info.run_id
        return self._runs[version]
