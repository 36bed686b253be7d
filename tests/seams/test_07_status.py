"""Seam 07: whatever a stream has to say of itself, `/v1/status`, the scrape and the command line can say it; and an
answer that does fail leaves exactly one trace in the log."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest
from starlette.requests import ClientDisconnect

from stream_odml.cluster.driver import StreamDriver
from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.reasons import Reason
from stream_odml.observe.logs import join_serve_log
from stream_odml.observe.plain import plain
from stream_odml.pipeline.figures import stream_figures
from stream_odml.pipeline.messages import StageProgress
from stream_odml.pipeline.metrics import DriverMetrics, StreamFigures
from stream_odml.service.api import create_app
from stream_odml.store.store import Store
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream, picture

ODD: dict[Any, Any] = {
    "nan": math.nan,
    "infinite": -math.inf,
    "numpy": np.float32(1.5),
    "array": np.arange(3),
    "set": {"b", "a"},
    "path": Path("inbox"),
    "bytes": b"\xff",
    "surrogate": "\udcff.png",
    "nested": [MappingProxyType({("old", "served"): Counter({Reason.EMPTY_IMAGE: 2})})],
    ("not_an_image", 1): 1,
    None: defaultdict(list, {3: [(1, 2)]}),
}


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[TinyStream]:
    """A stream with one row in quarantine."""
    stream = TinyStream(tmp_path)
    items = [NewItem(picture(0), "cat", "good"), NewItem(b"no image", "cat", "bad")]
    land_items(stream.inbox, "mixed", items)
    stream.ingest()
    yield stream
    stream.close()


def driver_over(stream: TinyStream, progress: StageProgress) -> StreamDriver:
    """The driver's own account of `stream`, without its threads."""
    driver: Any = object.__new__(StreamDriver)
    driver._lock, driver._metrics = threading.RLock(), DriverMetrics()
    driver._metrics.progress = progress
    driver._writer, driver._config = stream.writer, SimpleNamespace(name="tiny")
    driver._stages = SimpleNamespace(explain=lambda: ["waits"])
    driver._discovery = SimpleNamespace(
        figures=list, error="", failures=0, notes=[{("odd", "key"): math.nan}]
    )
    driver._journal = SimpleNamespace(follow=lambda tree: None)
    driver._tidying = SimpleNamespace(problem="")
    driver._ingestion = SimpleNamespace(unreachable=0, problem="")
    driver._fast = SimpleNamespace(order=None, problem="")
    driver._problem = driver._training_problem = driver.metrics_address = ""
    driver._commit_failures = driver._stages_deferred = 0
    return driver  # type: ignore[no-any-return]


@dataclass
class Reporting(FakeBackend):
    """A backend whose status says `told`."""

    reported: Mapping[Any, Any] = field(default_factory=dict)

    async def status(self) -> Mapping[str, Any]:
        return {"driver": self.reported}


def asked(reported: Mapping[Any, Any]) -> dict[str, Any]:
    with LocalApi(create_app(Reporting(reported=reported), ServiceOptions())) as api:
        answer = api.get("/v1/status")
    assert answer.status_code == 200, answer.text
    driver: dict[str, Any] = json.loads(answer.text, parse_constant=pytest.fail)["driver"]
    return driver


def test_a_quarantined_row_and_a_loss_that_is_no_number_are_reported(refusing: TinyStream) -> None:
    reported = driver_over(refusing, StageProgress(losses={"total": math.nan})).status()
    driver = asked(reported)
    assert driver["quarantined"] == {"not_an_image": 1}
    assert driver["images"]["quarantined"] == 1
    assert driver["stage"]["losses"] == {"total": None}
    assert driver["open_task"] == ["waits", {"odd/key": None}]


def test_what_json_has_no_form_for_is_reported_in_one_that_it_has() -> None:
    driver = asked(ODD)
    assert driver["nan"] is driver["infinite"] is None
    assert (driver["numpy"], driver["array"], driver["set"]) == (1.5, [0, 1, 2], ["a", "b"])
    assert driver["nested"] == [{"old/served": {str(Reason.EMPTY_IMAGE): 2}}]
    assert (driver["not_an_image/1"], driver["None"], driver["path"]) == (1, {"3": [[1, 2]]}, "inbox")


def test_versions_with_figures_that_are_not_finite_are_listed() -> None:
    backend = FakeBackend()
    odd = {"forgetting": math.nan, "drift/mean": np.float32(2.0)}
    row = backend.versions_list[1]
    backend.versions_list[1] = replace(row, metrics=odd)
    with LocalApi(create_app(backend, ServiceOptions())) as api:
        listed = api.get("/v1/versions").json()["versions"][1]["metrics"]
    assert listed == {"forgetting": None, "drift/mean": 2.0}


def test_every_plain_value_survives_json() -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    for value in (*ODD.values(), ODD, deep, object(), Reporting):
        assert json.loads(json.dumps(plain(value), allow_nan=False)) == plain(value)


def test_a_scrape_leaves_out_only_what_is_no_figure(refusing: TinyStream) -> None:
    metrics = DriverMetrics()
    metrics.figures = stream_figures(refusing.writer.store, 1)
    odd: Any = {None: 1.0, "mean": None, "text": "x", "max": np.float32(0.5)}
    metrics.figures = StreamFigures(quarantined=metrics.figures.quarantined, drift=odd)
    text = generate_latest(metrics.registry).decode()
    assert 'stream_odml_quarantined_rows_total{reason="not_an_image"} 1.0' in text
    assert 'stream_odml_drift{measure="max"} 0.5' in text
    assert 'measure="mean"' not in text


def test_the_command_line_says_it_too(refusing: TinyStream) -> None:
    from stream_odml.cli.stream_root import root_status

    assert json.loads(json.dumps(plain(root_status(refusing.root))))["quarantined"] == {"not_an_image": 1}
    assert Store.open(refusing.root).quarantine_rows().num_rows == 1


def test_a_failure_is_logged_once_with_its_trace(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(FakeBackend, "classes", explode)
    with LocalApi(create_app(FakeBackend(), ServiceOptions())) as api:
        assert api.get("/v1/classes").status_code == 500
    traces = [record for record in caplog.records if record.exc_info]
    assert len(traces) == 1
    assert "no such thing" in caplog.text


def test_a_replica_logs_where_serve_keeps_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve turns a replica's stderr into text of level INFO, below what replicas log."""
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", seen.append)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    join_serve_log()
    logging.getLogger("stream_odml.service.guard").error("failed")
    assert [record.getMessage() for record in seen] == ["failed"]


@pytest.mark.parametrize("gone", [ClientDisconnect(), ConnectionResetError()])
def test_a_client_that_hangs_up_is_no_failure_of_the_server(
    caplog: pytest.LogCaptureFixture, gone: Exception
) -> None:
    import asyncio

    backend = FakeBackend()
    app = create_app(backend, ServiceOptions(), backend.metrics)
    scope = {
        "type": "http", "method": "POST", "path": "/v1/search", "raw_path": b"/v1/search", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")], "root_path": "",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http", "http_version": "1.1",
    }  # fmt: skip
    body = [{"type": "http.request", "body": b'{"vector": [', "more_body": True}, {"type": "http.disconnect"}]
    whole = [{"type": "http.request", "body": json.dumps({"vector": [1.0] * 8}).encode()}]
    left = body if isinstance(gone, ClientDisconnect) else whole

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        raise gone

    asyncio.run(app(scope, receive, send))
    assert not caplog.records
    assert 'outcome="server_error"} 1.0' not in backend.metrics_text().decode()
