"""Traces of shards and stages by OpenTelemetry: off unless the configuration names an exporter.

A shard's or a stage's trace id is made from its own id, so the spans of driver, indexer and workers belong together
without anything being passed between them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from stream_odml.storage.reading import scheme_of

Exporter = Literal["off", "console", "file", "otlp"]
_tracer: Any = None


def set_up_traces(stream: str, role: str, exporter: Exporter, folder: Path) -> None:
    """Export this process's spans: to stderr, to `folder`/ROLE-PID.jsonl, or by OTLP as its environment says. Raises
    ValueError for `otlp` without the package opentelemetry-exporter-otlp."""
    global _tracer
    if exporter == "off":
        _tracer = None
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    resource = Resource.create({"service.name": "stream_odml", "stream": stream, "role": role})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(_processor(exporter, role, folder))
    _tracer = provider.get_tracer("stream_odml")


@contextlib.contextmanager
def span(name: str, of: str = "", **attributes: str | int | float) -> Iterator[None]:
    """Time the block as a span `name` of the trace of `of` (a shard's or version's id); nothing when off."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, context=_trace_of(of), attributes={**attributes, "of": of}):
        yield


def trace_id(of: str) -> int:
    """Return the 128-bit trace id of a shard or version."""
    return int.from_bytes(hashlib.sha256(of.encode()).digest()[:16], "big")


def traces_folder(root: str) -> Path:
    """Return traces/ under a root that is a folder, else in this node's temporary folder."""
    return Path(tempfile.gettempdir()) / "stream-odml-traces" if scheme_of(root) else Path(root) / "traces"


def _trace_of(of: str) -> Any:
    """Return a context whose remote parent is the shard or stage itself; within a span of the same trace, that span."""
    from opentelemetry import trace

    current = trace.get_current_span().get_span_context()
    if not of or (current.is_valid and current.trace_id == trace_id(of)):
        return None
    parent = trace.SpanContext(
        trace_id(of), trace_id(of) & (2**64 - 1) or 1, is_remote=True, trace_flags=trace.TraceFlags(1)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(parent))


def _processor(exporter: Exporter, role: str, folder: Path) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    if exporter == "otlp":
        try:
            otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ImportError as error:
            raise ValueError(
                "observe.traces is otlp, but its exporter is not installed; "
                "`pip install opentelemetry-exporter-otlp-proto-http` on every node, or use `file`"
            ) from error
        return BatchSpanProcessor(otlp.OTLPSpanExporter())
    if exporter == "file":
        folder.mkdir(parents=True, exist_ok=True)
        out = (folder / f"{role}-{os.getpid()}.jsonl").open("a", buffering=1, encoding="utf-8")
    else:
        out = sys.stderr  # type: ignore[assignment]
    # Written span by span: an actor is killed without a chance to flush, and spans are few.
    return SimpleSpanProcessor(
        ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
    )
