"""Logs and traces of one process of a stream, set up from the stream's configuration."""

from __future__ import annotations

from stream_odml.cluster.logs import set_up_logs
from stream_odml.cluster.tracing import set_up_traces, traces_folder
from stream_odml.config import StreamConfig


def observe(config: StreamConfig, role: str) -> None:
    """Call first in every process; ``role`` names it in logs and traces (driver, indexer-0, worker-1)."""
    told = config.observe
    set_up_logs(config.name, role, told.log_format, told.log_level)
    set_up_traces(config.name, role, told.traces, traces_folder(config.root))
