"""A real Prometheus scrapes real exporters by the shipped configuration, and answers every panel and rule."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from stream_odml.config.service import ServiceOptions
from stream_odml.observe.targets import announce
from stream_odml.pipeline.metrics import DriverMetrics
from stream_odml.service.metrics import Exporter, ServiceMetrics
from tests.deploy.paths import DEPLOY, load_rules, panel_queries, tool
from tests.deploy.prometheus_server import Server, prometheus, wait_for
from tests.deploy.promql import example_driver, example_replica, names, ray_names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ALERTS = {rule["alert"]: rule["expr"] for rule in load_rules() if "alert" in rule}
RAY_FILE = "prom_metrics_service_discovery.json"
RAY = {name for _, expression in panel_queries() for name in names(expression) if name.startswith("ray_")}


@dataclass
class Stream:
    """What a test moves: the exporters of a driver and of a replica, and the Prometheus that watches them."""

    driver: DriverMetrics
    replica: ServiceMetrics
    server: Server
    folder: Path


def _configure(folder: Path) -> Path:
    """The shipped prometheus.yml with the test's paths, and a pace for tests; nothing else differs."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        (found,) = job["file_sd_configs"]
        (pattern,) = (Path(file) for file in found["files"])
        place = folder if job["job_name"] == "ray" else folder / "root" / "metrics"
        found |= {"files": [str(place / pattern.name)], "refresh_interval": "1s"}
        job.pop("scrape_interval", None)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextlib.contextmanager
def _ray_node(folder: Path) -> Iterator[None]:
    """Stands for a Ray node: the metrics that panels ask for, found through a file of the form that Ray writes."""
    registry = CollectorRegistry()
    for name in RAY:
        Gauge(name, "As Ray names it.", registry=registry).set(40)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    targets = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{server.server_port}"]}]
    (folder / RAY_FILE).write_text(json.dumps(targets), encoding="utf-8")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stream]:
    program = tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    driver, replica = example_driver(), example_replica()
    announce(folder / "root" / "metrics", "driver", f"127.0.0.1:{driver.serve(0)}", {})
    with contextlib.ExitStack() as stack:
        exporter = Exporter(
            replica, "r1", ServiceOptions(), folder=folder / "root" / "metrics", node_address=""
        )
        stack.callback(exporter.close)
        stack.enter_context(_ray_node(folder))
        server = stack.enter_context(prometheus(program, _configure(folder)))
        stream = Stream(driver, replica, server, folder)
        wait_for("three healthy targets", lambda: sorted(server.targets().values()) == ["up", "up", "up"])
        _live(stream)
        wait_for("a rate of queries", lambda: bool(server.query("stream_odml:query_seconds:p99_rate5m")))
        wait_for("a rate of images", lambda: bool(server.query("stream_odml:quarantine:ratio_rate15m")))
        yield stream


def _live(stream: Stream) -> None:
    """Some traffic after the first scrape: a rate needs two points, and a quantile needs a rate."""
    driver, replica = stream.driver, stream.replica
    images = {**driver.figures.images, "ingested": driver.figures.images["ingested"] + 500}
    driver.figures = replace(driver.figures, images=images)
    driver.progress = replace(driver.progress, step=driver.progress.step + 5)
    for histogram in (driver.searchable, driver.first_batch, driver.step, driver.data_wait):
        histogram.observe(0.2)
    for commit in ("ingest", "stage"):
        driver.commit.labels(commit).observe(0.02)
    for kind in ("vector", "image"):
        for _ in range(1000):
            replica.observe_request(kind, 200, 0.004)
    replica.swap.observe(0.03)
    replica.lag.observe(0.4)


def test_the_shipped_configuration_finds_driver_replica_and_ray(stream: Stream) -> None:
    jobs = {labels["job"]: value for labels, value in stream.server.query("up")}
    assert jobs == {"stream-odml-driver": 1, "stream-odml-replica": 1, "ray": 1}


@pytest.mark.parametrize(("title", "expression"), list(panel_queries()))
def test_every_panel_has_an_answer(stream: Stream, title: str, expression: str) -> None:
    assert stream.server.query(expression), f"{title}: no answer to {expression}"


@pytest.mark.parametrize("record", [rule["record"] for rule in load_rules() if "record" in rule])
def test_every_recording_rule_records(stream: Stream, record: str) -> None:
    assert stream.server.query(record)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_evaluates_on_series_that_are_there(stream: Stream, alert: str) -> None:
    stream.server.query(ALERTS[alert])
    for name in names(ALERTS[alert]):
        assert stream.server.query(name), f"{alert} reads {name}, which has no series"


def test_no_rule_fails_and_a_healthy_stream_matches_no_alert(stream: Stream) -> None:
    assert stream.server.rule_errors() == {}
    assert [alert for alert, expression in ALERTS.items() if stream.server.query(expression)] == []


def test_figures_arrive_unchanged(stream: Stream) -> None:
    ask = stream.server.query
    assert [v for _, v in ask('stream_odml_shards_total{state="indexed"}')] == [28]
    assert [v for _, v in ask('stream_odml_recall_at_1{split="old",gallery="served"}')] == [0.78]
    assert [labels["version"] for labels, _ in ask("stream_odml_head_info")] == [stream.driver.figures.head]
    [(labels, p99)] = ask('stream_odml:query_seconds:p99_rate5m{kind="vector"}')
    assert labels["kind"] == "vector"
    assert 0.002 <= p99 <= 0.004  # every query took 4 ms, and the bucket that holds it begins at 2


def test_ray_exposes_what_the_panels_ask_of_it() -> None:
    if not ray_names():
        pytest.skip("NOT CHECKED: Ray is not installed")
    assert ray_names() >= RAY


def test_a_sick_stream_matches_its_alerts(stream: Stream) -> None:
    """Runs last: the same server, with the figures of a stream in trouble."""
    driver, replica = stream.driver, stream.replica
    f = driver.figures
    driver.figures = replace(
        f,
        head="v0004-ffffffff",
        forgetting=0.3,
        gate_refusals=1,
        shards={**f.shards, "set_aside": 2},
        images={**f.images, "quarantined": f.images["quarantined"] + 400},
        queue_age_s={"index": 300.0, "boundary": 0.0, "learn": 9000.0},
        quarantined={**f.quarantined, "lost_messages": 1},
        logs=[replace(one, lag=30) for one in f.logs],
    )
    driver.progress = replace(driver.progress, phase="committing")
    wanted = {
        "StreamQueriesFailing", "StreamQueriesSlow", "StreamServesStaleVersion", "StreamReplicaCannotReadStore",
        "StreamIndexingLags", "StreamSearchableLate", "StreamLearningLags", "StreamStageStuck", "StreamForgets",
        "StreamGateRefuses", "StreamQuarantines", "StreamShardSetAside", "StreamMessagesLost", "StreamTopicLags",
    }  # fmt: skip

    def missing() -> set[str]:
        # It goes on failing: a series that has only just appeared has no rate yet.
        for _ in range(100):
            driver.searchable.observe(200)
            replica.observe_request("vector", 500, 2)
            replica.poll_errors.inc()
        return {alert for alert in wanted if not stream.server.query(ALERTS[alert])}

    with contextlib.suppress(AssertionError):
        wait_for("alerts", lambda: not missing())
    assert missing() == set()


def test_a_replica_that_ends_leaves_the_targets(stream: Stream, tmp_path: Path) -> None:
    second = Exporter(
        ServiceMetrics(), "r2", ServiceOptions(), folder=stream.folder / "root" / "metrics", node_address=""
    )
    url = f"http://{second.address}/metrics"
    try:
        wait_for("the second replica", lambda: stream.server.targets().get(url) == "up")
    finally:
        second.close()
    wait_for("its departure", lambda: url not in stream.server.targets())


def test_a_driver_that_moves_is_found_where_it_went(stream: Stream) -> None:
    """Runs after the others: the driver that Ray restarted elsewhere announces itself under the same name."""
    folder = stream.folder / "root" / "metrics"
    (left,) = json.loads((folder / "driver.json").read_text())[0]["targets"]
    came = f"127.0.0.1:{example_driver().serve(0)}"
    announce(folder, "driver", came, {})
    wait_for("the driver", lambda: stream.server.targets().get(f"http://{came}/metrics") == "up")
    wait_for("the end of its former place", lambda: f"http://{left}/metrics" not in stream.server.targets())
