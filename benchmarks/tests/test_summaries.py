"""Summaries of a compatibility matrix, and intervals of differences, that can be checked by hand."""

from __future__ import annotations

import pytest

from benchmarks.quality.figures import bootstrap_interval, curves, seed_figures


def test_a_compatibility_matrix_has_its_three_summaries() -> None:
    matrix = {(0, 0): 0.8, (1, 0): 0.7, (1, 1): 0.9, (2, 0): 0.8, (2, 1): 0.6, (2, 2): 0.5}
    shared = {"method": "l2", "seed": 0, "stage": 2, "gallery": "mapped", "metric": "recall_at_1"}
    rows = [{**shared, "split": f"compatibility {k} {t}", "value": value} for (t, k), value in matrix.items()]
    rows += [{**shared, "split": "all", "gallery": "none", "metric": "train_s", "value": 1.0}]
    figures = seed_figures(curves(rows), "l2")
    assert figures["compatibility_ac_mapped"][0] == pytest.approx(1 / 3)
    assert figures["compatibility_bc_mapped"][0] == pytest.approx((0.0 - 0.3) / 2)
    assert figures["compatibility_fc_mapped"][0] == pytest.approx((-0.2 + 0.1) / 2)


def test_an_interval_of_few_differences_is_that_of_all_draws() -> None:
    assert bootstrap_interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1))
    assert bootstrap_interval([0.0, 1.0], share=0.5) == pytest.approx((0.375, 0.625))
