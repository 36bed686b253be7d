"""A dose of the fault benchmark at every commit: a dozen kills in a live stream, one of the whole tree, Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common import Report
from benchmarks.faults.__main__ import arguments_of, plan_of
from benchmarks.faults.campaign import run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_a_dozen_kills_and_one_of_the_whole_tree(tmp_path: Path) -> None:
    """The same as `python -m benchmarks.faults --quick`; what is printed names the seed and the kill."""
    arguments = arguments_of(["--quick", "--seed", "7", "--out", str(tmp_path)])
    report = Report.begin("faults-quick", arguments)
    assert run(report, 7, plan_of(arguments)) == []
    kills = [row for row in report.rows if "slot" in row]
    assert len([row for row in kills if row["verdict"] == "ok"]) >= 10, kills
    assert {row["slot"] for row in kills} >= {"writing", "indexing", "apart"}
