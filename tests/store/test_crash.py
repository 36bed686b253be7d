"""Killed at every named point, run again: nothing lost, nothing twice, nothing phantom, whole shards or none."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from stream_odml.storage.crashpoints import CRASH_POINTS, ORDER, crash_point
from stream_odml.store.tables import Form
from tests.store.crash_walk import (
    EXACT,
    HALVES,
    POINTS,
    check_finished,
    check_whole_shards,
    killed_at,
    walk,
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("points", "form"),
    [
        pytest.param(HALVES, "exact", id="between tables"),
        pytest.param(POINTS, "embedding", id="everywhere"),
        pytest.param(EXACT, "exact", id="everywhere of an exact root"),
    ],
)
def test_killed_twice(points: Sequence[str], form: Form) -> None:
    failed = {point: why for point, why in walk(points, form=form) if why}
    assert failed == {}


@pytest.mark.parametrize("chain", range(3))
def test_killed_at_one_point_after_the_other(chain: int, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    for point in CRASH_POINTS[chain::3]:
        assert killed_at(root, point), f"the scenario does not pass {point} any more"
        check_whole_shards(root)
    assert not killed_at(root, "")
    check_finished(root)


def test_a_run_without_a_crash_and_its_repetition(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    for _ in range(2):
        assert not killed_at(root, "")
        check_finished(root)


def test_an_order_to_die_is_taken_by_one_and_for_its_point_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed: list[int] = []
    order = tmp_path / "order"
    monkeypatch.setenv(ORDER, str(order))
    monkeypatch.setattr("os.kill", lambda pid, sign: killed.append(sign))
    crash_point("ingest.before")  # no order yet
    order.write_text("ingest.before")
    crash_point("stage.before")
    assert order.exists()
    assert not killed
    crash_point("ingest.before")
    crash_point("ingest.before")
    assert len(killed) == 1
    assert not order.exists()


def test_a_point_that_no_test_walks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_ODML_CRASH_AT", "ingest.before")
    with pytest.raises(ValueError, match="not in CRASH_POINTS"):
        crash_point("somewhere.else")
