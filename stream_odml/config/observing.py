"""What a stream tells of itself: metrics, writers of stages, logs, traces, profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from stream_odml.config.section import Section


class MetricsConfig(Section):
    """The Prometheus exporter of the driver, and writers of stages for TensorBoard and MLflow."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(9464, ge=0, le=65535)
    """Port to listen on; 0 picks a free one."""
    targets_dir: Path | None = None
    """Folder of Prometheus file_sd files, where the driver names its exporter; by default metrics/ under the root."""
    tensorboard: Path | None = None
    """Folder on the driver's node for TensorBoard: figures of every stage, loss curves. A relative one lies under the
    stream root. Off by default."""
    mlflow: str | None = None
    """Tracking URI of an MLflow server (`http://host:5000`): a run for every stage. Off by default."""


class ObserveConfig(Section):
    """Logs, traces and profiles. Metrics are always on."""

    log_format: Literal["text", "json"] = "text"
    """`json`: one object a line, with stream, role, stage and shard."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level that is logged."""
    traces: Literal["off", "console", "file", "otlp"] = "off"
    """OpenTelemetry spans of shards and stages: to stderr, to traces/ under the root, or by OTLP."""
    profile_steps: int = Field(0, ge=0, le=1000)
    """Steps to profile of the first stage that a worker learns; the Chrome trace goes to profiles/ under the root."""
