"""A training group that takes what there is leaves room for the stream's other processes."""

from __future__ import annotations

import logging
import threading

import pytest
import ray
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)

from stream_odml.cluster import reserved_resources as module
from stream_odml.cluster.placement import Role
from stream_odml.cluster.reserved_resources import ReservedResources


def places() -> int:
    """How many of three training workers of one CPU Ray's coordinator finds a place for."""
    coordinator = get_or_create_autoscaling_coordinator()
    ray.get(coordinator.request_resources.remote("train-x", [{"CPU": 1.0}] * 3, 60.0,
                                                 priority=ResourceRequestPriority.HIGH))  # fmt: skip
    found = ray.get(coordinator.get_reserved_resources.remote("train-x", recompute=True))
    ray.get(coordinator.cancel_request.remote("train-x"))
    return int(sum(node.get("CPU", 0.0) for node in found.values()))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cpus")
def test_workers_are_not_counted_where_indexers_and_replicas_are() -> None:
    assert places() == 3  # whoever else holds a part of a CPU
    holding = ReservedResources(
        "x", [Role("indexers", "", 2, 0.2), Role("serving", "", 1, 0.5), Role("none", "", 1, 0.0)]
    )
    assert places() == 2
    holding.release()
    assert places() == 3


def test_a_coordinator_that_does_not_answer_is_asked_again_and_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked, thrice = [], threading.Event()

    def away(*_: object) -> None:
        asked.append(1)
        if len(asked) == 3:
            thrice.set()
        raise TimeoutError("busy")

    monkeypatch.setattr(module, "reserve", away)
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    with caplog.at_level(logging.WARNING):
        holding = ReservedResources("x", [Role("indexers", "", 1, 0.2)])
        assert thrice.wait(60)
        holding.release()
    assert sum("is not reserved (TimeoutError: busy)" in record.message for record in caplog.records) == 1
