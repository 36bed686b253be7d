"""The laws of the scale benchmark: fitted where they should be, judged where they were not fitted."""

from __future__ import annotations

import pytest

from benchmarks.scale.laws import Law
from benchmarks.scale.walls import TARGET, WALLS, in_order, reached_at, sizes_at


def line(base: float, slope: float, name: str = "vectors") -> Law:
    law = Law("load_s", "s", lambda sizes: [1.0, sizes[name]])
    for n in (100, 200, 400):
        law.points.append(({name: n}, base + slope * n, False))
    return law


def test_a_law_finds_the_line_that_made_its_points() -> None:
    law = line(0.5, 0.01)
    assert law.factors == pytest.approx([0.5, 0.01])
    assert law.at(vectors=1e6) == pytest.approx(10_000.5)


def test_a_point_that_checks_is_not_fitted() -> None:
    law = line(0.5, 0.01)
    law.point(50.0, check=True, vectors=1000)
    assert law.factors == pytest.approx([0.5, 0.01])
    ((_, measured, said, error),) = law.errors()
    assert (measured, said, error) == pytest.approx((50.0, 10.5, 0.79))


def test_the_wall_is_where_the_law_meets_its_limit() -> None:
    law = line(0.0, 1e-6)
    share = reached_at(law, limit=100.0)  # 10^8 vectors of 10^9
    assert share == pytest.approx(0.1, rel=1e-6)
    assert law.at(**sizes_at(share)) == pytest.approx(100.0)
    assert reached_at(line(0.0, 1e-15), limit=100.0) == 1e3


def test_walls_come_nearest_first_and_each_with_its_remedy() -> None:
    laws = []
    for number, wall in enumerate(WALLS):
        law = Law(wall.law, "s", lambda sizes: [sizes["vectors"]])
        law.point(wall.limit * (number + 1) / TARGET["vectors"], vectors=1)
        laws.append(law)
    rows = in_order(laws)
    assert [row["what"] for row in rows] == [wall.law for wall in reversed(WALLS)]
    assert all(row["remedy"] for row in rows)
    assert rows[0]["reached_at_vectors"] == pytest.approx(TARGET["vectors"] / len(WALLS))
