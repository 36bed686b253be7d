"""A query passes few functions of ours between the ASGI app and FAISS: each one decides something."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from starlette.types import ASGIApp

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from tests.hops import ours, stack
from tests.seams.caller import JSON, Caller
from tests.service.tiny_stream import TinyStream

MAX_HOPS = 10


def hops_to_faiss(app: ASGIApp, body: bytes, headers: dict[str, str]) -> list[str]:
    """Our functions that wait for, or run, the search of one request: those of its task that are suspended, and those
    on the stack when FAISS is called."""
    found: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "knn_inner_product":
            assert not found, "one query is one search"
            found.extend(ours(_suspended(request)) + ours(stack(frame)))

    with asyncio.Runner() as runner:
        request = runner.get_loop().create_task(Caller(app, "peer").ask("/v1/search", body, headers=headers))
        sys.setprofile(watch)
        try:
            assert runner.get_loop().run_until_complete(request) == 200
        finally:
            sys.setprofile(None)
    return found


def _suspended(task: asyncio.Task[int]) -> list[CodeType]:
    codes: list[CodeType] = []
    waits: Any = task.get_coro()
    while (code := getattr(waits, "cr_code", None)) is not None:
        codes.append(code)
        waits = waits.cr_await
    return codes


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_a_query_passes_few_functions_of_ours(tmp_path: Path, kind: str) -> None:
    stream = TinyStream(tmp_path)
    ids = stream.land("a", ["cat", "dog"])
    replica = Replica(stream.root, ServiceOptions())
    replica.start()
    app = create_app(replica, ServiceOptions(), replica.metrics)
    if kind == "vector":
        vector = ", ".join(str(value) for value in stream.vectors(ids)[0].tolist())
        hops = hops_to_faiss(app, f'{{"vector": [{vector}], "k": 2}}'.encode(), JSON)
    else:
        hops = hops_to_faiss(app, stream.images[ids[0]], {"content-type": "image/png"})
    assert len(hops) <= MAX_HOPS, "\n".join(hops)
    assert "Guard.__call__" in hops[0]
    assert "inner_product" in hops[-1]
    replica.close()
    stream.close()
