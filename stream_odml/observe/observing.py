"""Logs and traces of one process of a stream, set up from the stream's configuration."""

from __future__ import annotations

import logging

from stream_odml.config.stream import StreamConfig
from stream_odml.observe.logs import set_up_logs
from stream_odml.observe.tracing import set_up_traces, traces_folder

TERMINAL = "run"
"""Role of the process that a person started."""


def observe(config: StreamConfig, role: str) -> None:
    """Call first in every process; `role` names it in logs and traces (driver, indexer-0, worker-1). The process at a
    person's terminal keeps its own few words, unless the log is for machines."""
    options = config.observe
    if role != TERMINAL or options.log_format == "json":
        set_up_logs(config.name, role, options.log_format, options.log_level)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request
    set_up_traces(config.name, role, options.traces, traces_folder(config.root))
