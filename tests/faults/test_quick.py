"""A dose of the fault benchmark: a dozen kills in a live stream, one of the whole tree, Ctrl-C."""

from __future__ import annotations

import pytest

from tests.faults.__main__ import arguments_of, plan_of
from tests.faults.campaign import run
from tests.measured import Measured

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]


def test_a_dozen_kills_and_one_of_the_whole_tree() -> None:
    """The same as `python -m benchmarks.faults --quick`; what is printed names the seed and the kill."""
    arguments = arguments_of(["--quick", "--seed", "7"])
    report = Measured("faults-quick", arguments.seeds, quick=True)
    assert run(report, 7, plan_of(arguments)) == []
    kills = [row for row in report.rows if "slot" in row]
    assert len([row for row in kills if row["verdict"] == "ok"]) >= 10, kills
    assert {row["slot"] for row in kills} >= {"writing", "indexing", "apart"}
