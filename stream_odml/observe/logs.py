"""What a process says: one event a line, as text or as JSON, with the stream, stage and shard that it is about."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from stream_odml.ingest.fields import written_out

LogFormat = Literal["text", "json"]
_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
_always: dict[str, str] = {}


def set_up_logs(stream: str, role: str, log_format: LogFormat, level: str) -> None:
    """Send this process's log to stderr. A second call replaces what the first set up."""
    _always.update(stream=stream, role=role)
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def join_serve_log() -> None:
    """Send the log of this Serve replica to the file that Serve keeps for it. Serve takes what a replica writes to
    stderr for text of level INFO, which the replica's level then drops."""
    logging.getLogger().handlers = list(logging.getLogger("ray.serve").handlers)


@contextlib.contextmanager
def about(**what: str) -> Iterator[None]:
    """Let every line of this thread within the block also name `what`: stage="v0003-…", shard="…"."""
    token = _about.set({**_about.get(), **what})
    try:
        yield
    finally:
        _about.reset(token)


class _Json(logging.Formatter):
    """time, level, logger, message; stream, role; stage, shard and others where they are known; error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_always,
            **_about.get(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Lines for people. Nothing in a message steers the terminal, and further lines of it pass for no event."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        record.message = written_out(record.message, keep="\n\t").replace("\n", "\n    ")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's own name
        return written_out(super().formatException(ei), keep="\n\t")

    def format(self, record: logging.LogRecord) -> str:
        named = " ".join(f"{key}={value}" for key, value in _about.get().items())
        return super().format(record) + (f" [{named}]" if named else "")
