"""Defaults of the settings are what the rows of validation images say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.quality import defaults
from benchmarks.quality.defaults import CHOICES, Choice, chosen, table

PAGE = Path(__file__).resolve().parents[1] / "STUDY.md"


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.setting)
def test_a_default_is_what_the_rows_choose(choice: Choice) -> None:
    """Or a reason says why it stands, for as long as they choose another."""
    assert (chosen(choice) == str(choice.default)) == (not choice.stands), table()


def test_the_page_has_the_table_of_defaults() -> None:
    assert table() in PAGE.read_text("utf-8")


def rows(method: str, served: float, select: str = "validation") -> list[dict[str, Any]]:
    shared = {"method": method, "seed": 0, "stage": 1, "select": select, "run": method}
    return [
        {**shared, "split": "union", "gallery": "mapped", "metric": "recall_at_1", "value": served},
        {**shared, "split": "all", "gallery": "none", "metric": "train_s", "value": 1.0},
    ]


def test_another_value_has_to_be_better_by_the_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RESULTS", tmp_path)
    choice = Choice("dim", 128, {"64": "small", "128": "standing"}, "avg_inc_r1_mapped", ("one",))

    def choose(small: float, standing: float, select: str = "validation") -> str:
        measured = [*rows("small", small, select), *rows("standing", standing, select)]
        pq.write_table(pa.Table.from_pylist(measured), tmp_path / "one.parquet")
        return chosen(choice)

    assert choose(0.804, 0.8) == "128"
    assert choose(0.806, 0.8) == "64"
    assert choose(0.7, 0.8) == "128"
    with pytest.raises(ValueError, match="rows of test images"):
        choose(0.7, 0.8, "test")
    pq.write_table(pa.Table.from_pylist(rows("small", 0.8)), tmp_path / "one.parquet")
    with pytest.raises(ValueError, match="expected all of"):
        chosen(choice)
