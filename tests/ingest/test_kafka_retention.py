"""What a topic deletes soon is said before it does: by age where its brokers tell it, else once it deletes."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from stream_odml.ingest import kafka_retention
from stream_odml.ingest.kafka_retention import Retention

HOUR_MS = 3_600_000
KEY = ("photos", 0)


class Cluster:
    """As much of an admin client: one partition with a message an hour, the newest now."""

    def __init__(self, low: int, end: int, config: Mapping[str, str] | None) -> None:
        self.low, self.end, self.config = low, end, config

    def list_offsets(self, asked: Mapping[Any, Any], **_: Any) -> dict[Any, Future[Any]]:
        return {place: _answered(SimpleNamespace(offset=self._offset(spec))) for place, spec in asked.items()}

    def describe_configs(self, asked: Collection[Any], **_: Any) -> dict[Any, Future[Any]]:
        if self.config is None:
            return {topic: _answered(PermissionError("no Describe on its configuration")) for topic in asked}
        found = {name: SimpleNamespace(value=value) for name, value in self.config.items()}
        return {topic: _answered(found) for topic in asked}

    def _offset(self, spec: Any) -> int:
        time_ms = spec._value
        if time_ms == -2:
            return self.low
        hours = (time.time() * 1000 - time_ms) / HOUR_MS
        offset = self.end - int(hours)  # the first that is no older
        return max(self.low, offset) if hours >= 0 else -1


def _answered(answer: Any) -> Future[Any]:
    made: Future[Any] = Future()
    made.set_exception(answer) if isinstance(answer, Exception) else made.set_result(answer)
    return made


def looked(monkeypatch: pytest.MonkeyPatch, *clusters: Cluster) -> Retention:
    monkeypatch.setattr(kafka_retention, "LOOK_S", 0.0)
    found = Retention()
    for cluster in clusters:
        for _ in range(3):  # asks, learns the configuration, asks by it
            found.look(cluster, [KEY])  # type: ignore[arg-type]
    return found


def test_messages_past_half_of_their_time_are_at_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    week = {"retention.ms": str(168 * HOUR_MS), "cleanup.policy": "delete"}
    found = looked(monkeypatch, Cluster(0, 100, week))
    # Those below 16 are older than 84 hours.
    assert [found.at_risk(KEY, wanted, 100) for wanted in (0, 10, 16, 50, 100)] == [16, 6, 0, 0, 0]
    assert found.keeps("photos") == "retention.ms 604800000, 168 h"


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"retention.ms": "-1"},
        {"retention.ms": str(10 * HOUR_MS), "cleanup.policy": "compact"},
    ],
)
def test_a_topic_that_deletes_nothing_by_age_threatens_nothing(
    monkeypatch: pytest.MonkeyPatch, config: Mapping[str, str] | None
) -> None:
    assert looked(monkeypatch, Cluster(40, 100, config)).at_risk(KEY, 40, 100) == 0


def test_once_a_partition_deletes_its_oldest_part_is_at_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked(monkeypatch, Cluster(0, 100, None), Cluster(50, 150, None))
    assert [found.at_risk(KEY, wanted, 150) for wanted in (50, 60, 70, 150)] == [20, 10, 0, 0]
    assert found.keeps("photos") == "retention.bytes"


def test_what_is_read_is_never_at_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    all_old = {"retention.ms": str(HOUR_MS // 100)}
    assert looked(monkeypatch, Cluster(0, 100, all_old)).at_risk(KEY, 100, 100) == 0
