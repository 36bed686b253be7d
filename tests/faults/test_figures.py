"""Figures of fault runs: losses count in every run, times only where nothing else ran and nothing else was hurt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults import live, others
from tests.faults.figures import figures

SUMS = {"shards_lost": 0, "learnt_twice": 0, "indexed_twice": 0, "phantom_items": 0, "disagreements": 0}


def kill(role: str, heal_s: float, **more: Any) -> dict[str, Any]:
    """A row of a kill."""
    return {"slot": "serving", "role": role, "heal_s": heal_s, "verdict": "ok", **more}


def run(only: list[str], quiet: bool, asked: int, first: int, second: int) -> dict[str, Any]:
    """The last row of a run of one minute with two kills."""
    answered = {"questions": asked, "answered_first": first, "answered_second": second}
    return {"sums": True, "only": only, "quiet": quiet, "kills": 2, "minutes": 1.0, **SUMS, **answered}


def test_times_are_of_single_kills_on_a_quiet_machine() -> None:
    rows = [
        kill("replica", 2.0, quiet=True),
        kill("replica", 50.0),
        kill("replica", 70.0, quiet=True, in_flight=["driver"]),
        kill("crash_point", 9.0, verdict="not passed"),
        {"slot": "writing", "role": "driver", "killed_again": True, "verdict": "ok"},
    ]
    seen = figures(rows)
    assert (seen["kills"], seen["kills_replica"], seen["kills_timed"]) == (4.0, 3.0, 1.0)
    assert seen["not_healed"] == 0.0
    assert seen["heal_s_p95"] == seen["heal_s_p50_replica"] == 2.0
    assert seen["heal_s_p95_busy_or_several"] == 69.0


def test_availability_is_of_quiet_runs_that_kill_replicas_alone() -> None:
    rows = [
        kill("replica", 2.0, quiet=True),
        run(["replica"], True, 1000, 990, 9),
        run(["replica"], False, 1000, 100, 0),
        run([], True, 1000, 500, 0),
    ]
    seen = figures(rows)
    assert seen["availability_one_retry"] == 0.999
    assert seen["availability_all_roles_one_retry"] == (999 + 100 + 500) / 3000
    assert seen["replica_kills_a_minute"] == 2.0


def test_what_others_use_is_what_no_process_of_the_family_used(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, used = iter([100.0, 104.0, 110.0]), {1: iter([3.0, 6.0]), 2: iter([0.5, 0.5])}
    clock = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(others, "_busy", lambda: next(busy))
    monkeypatch.setattr(others, "_used", lambda pid: next(used[pid]))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    seen = others.Others()
    seen.look([1])
    assert seen.cores is None
    seen.look([1, 2])
    assert seen.cores == (6.0 - 3.0 - 0.5) / 2.0


def test_the_oracle_looks_again_when_a_file_was_merged_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks: list[str] = []

    def open_store(root: str) -> str:
        looks.append(root)
        if len(looks) < 3:
            raise FileNotFoundError(root)
        return root

    monkeypatch.setattr("tests.faults.live.Store.open", open_store)
    monkeypatch.setattr(live, "violations", lambda store, truth, final, learnt: [])
    assert live.Live(tmp_path).check() == []
    assert len(looks) == 3
    monkeypatch.setattr(live, "LOOKS", 2)
    looks.clear()
    assert [violation.kind for violation in live.Live(tmp_path).check()] == ["disagree"]
