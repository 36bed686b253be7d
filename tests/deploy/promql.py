"""Which metrics an expression reads, and which ones the exporters and the recording rules offer."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stream_odml.ingest.sources import LogFigures
from stream_odml.pipeline.messages import StageProgress
from stream_odml.pipeline.metrics import DriverMetrics, StreamFigures
from stream_odml.service.metrics import ServiceMetrics
from tests.deploy.paths import load_rules

_NAME = re.compile(r"\b(?:stream_odml|ray)[a-zA-Z0-9_:]*|\bup\b")
_QUOTED = re.compile(r'"[^"]*"')


def names(expression: str) -> set[str]:
    """Names of the series that ``expression`` reads; text inside label matchers is no name."""
    return set(_NAME.findall(_QUOTED.sub('""', expression)))


def exposed(registry: CollectorRegistry) -> set[str]:
    """Names of the series that ``registry`` exposes now, with the suffixes of counters and histograms."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name for family in families for sample in family.samples}


def example_figures() -> StreamFigures:
    """A stream in the middle of its life; every figure has a value."""
    return StreamFigures(
        shards={"landed": 30, "indexed": 28, "assigned": 20, "learnt": 20, "set_aside": 0},
        images={"ingested": 2800, "quarantined": 14, "held_out": 280, "learnt": 2000},
        quarantined={"not_an_image": 10, "no_class": 4},
        queue_shards={"index": 2, "boundary": 8, "learn": 0},
        queue_age_s={"index": 0.4, "boundary": 30.0, "learn": 0.0},
        classes=40,
        stages_committed=3,
        gate_refusals=0,
        epoch=1,
        head="v0003-0a1b2c3d",
        head_committed_at=1.0,
        recall_at_1={("union", "served"): 0.8, ("old", "served"): 0.78, ("new", "served"): 0.9},
        forgetting=0.02,
        drift={"mean_angle": 0.1},
        logs=[LogFigures("photos", 0, 1200, 0, 0), LogFigures("photos", 1, 1100, 0, 0)],
        retries={"list": 1, "read": 2, "commit": 0, "stage": 0},
    )


def example_driver() -> DriverMetrics:
    """A driver's exporter with every metric set."""
    driver = DriverMetrics()
    driver.figures = example_figures()
    driver.progress = StageProgress("training", "t4", "v0004-x", 4, 10, 100, {"metric": 1.5}, workers=2)
    for histogram in (driver.searchable, driver.first_batch, driver.step, driver.data_wait):
        histogram.observe(0.2)
    for commit in ("ingest", "stage"):
        driver.commit.labels(commit).observe(0.02)
    return driver


def example_replica(version: str = "v0003-0a1b2c3d") -> ServiceMetrics:
    """A replica's exporter with every metric set."""
    replica = ServiceMetrics()
    for kind in ("vector", "image"):
        replica.observe_request(kind, 200, 0.004)
        replica.observe_request(kind, 503, 0.001)
    replica.observe_served(version, 1.0)
    replica.gallery_items.set(2800)
    replica.gallery_bytes.set(2800 * 128 * 4)
    replica.swap.observe(0.03)
    replica.lag.observe(0.4)
    return replica


def recorded() -> set[str]:
    """Names that the recording rules define."""
    return {rule["record"] for rule in load_rules() if "record" in rule}


def ray_names() -> set[str]:
    """Names of the node metrics in the source of the installed Ray, read and not imported: that takes long."""
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        return set()
    source = Path(spec.origin).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    return {
        f"ray_{name}" for name in re.findall(r'"(node_\w+)": Gauge\(', source.read_text(encoding="utf-8"))
    }


def unknown(expressions: Iterable[str]) -> set[str]:
    """Names in ``expressions`` that nothing exposes or records."""
    known = exposed(example_driver().registry) | exposed(example_replica().registry)
    wanted = set().union(*(names(e) for e in expressions))
    return wanted - known - recorded() - ray_names() - {"up"}
