"""Metrics of a version: what is stored is read back by name, and no name is written that is no field."""

from __future__ import annotations

import pytest

from stream_odml.cli.versions_table import SHOWN
from stream_odml.store.version_metrics import VersionMetrics, key

STORED = {
    "recall_at_1/old/served": 0.8,
    "recall_at_1/old/estimated": 0.7,
    "parent_recall_at_1/old": 0.9,
    "recall_at_1_of_task/a/b": 0.6,
    "recall_by_class": {"oak/red": 0.5},
    "forgetting": 0.0,
    "drift/bank_shift": 1.5,
    "an earlier release's": 3.0,
}


def test_parts_are_read_under_their_field() -> None:
    metrics = VersionMetrics.read(STORED)
    assert metrics.recall("old", "served") == 0.8
    assert metrics.recall("new", "served") is None
    assert metrics.recall_at_1 == {"old/served": 0.8, "old/estimated": 0.7}
    assert metrics.parent_recall_at_1 == {"old": 0.9}
    assert metrics.recall_at_1_of_task == {"a/b": 0.6}
    assert metrics.recall_by_class == {"oak/red": 0.5}
    assert (metrics.forgetting, metrics.seconds) == (0.0, None)
    assert metrics.drift == {"bank_shift": 1.5}


def test_an_initial_version_has_measured_nothing() -> None:
    assert VersionMetrics.read({}) == VersionMetrics()


def test_names_on_disk_are_those_of_the_first_release() -> None:
    assert key("parent_recall_at_1", "old", "estimated") == "parent_recall_at_1/old/estimated"
    assert key("forgetting") == "forgetting"
    with pytest.raises(ValueError, match="'forgeting' is no metric of a version; add a field"):
        key("forgeting")


def test_what_is_shown_is_measured() -> None:
    for name in SHOWN:
        key(name)
