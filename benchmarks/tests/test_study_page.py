"""The study's front table says what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.quality.figures import curves, seed_figures

BENCHMARKS = Path(__file__).resolve().parents[1]
PAGE = (BENCHMARKS / "STUDY.md").read_text("utf-8")
STREAMS = ("quality-flowers102", "quality-grocery81")


@pytest.mark.parametrize(("column", "name"), list(enumerate(STREAMS)))
def test_the_front_table_has_the_measured_recalls(column: int, name: str) -> None:
    front = PAGE[: PAGE.index("## Findings")]
    rows = re.findall(r"^\| `(\w+)`(, re-extracted)?[^|]*\| ([^|]+) \| ([^|]+) \|$", front, re.MULTILINE)
    figures = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())["figures"]
    said = {(method, bool(again)): cells[column].split()[0] for method, again, *cells in rows}
    assert len(said) >= 6
    for (method, again), value in said.items():
        form = "reextracted" if again else "mapped"
        assert value == f"{figures[f'{method}/last_r1_{form}']:.3f}", (method, name)


@pytest.mark.parametrize(
    ("column", "name"), [(0, "omniglot-400"), (2, "alphabets"), (4, "omniglot-thousand")]
)
def test_the_tables_of_drawings_have_the_measured_recalls(column: int, name: str) -> None:
    page = PAGE[PAGE.index("## Drawings") : PAGE.index("### A bonus for classes to come")]
    figures = json.loads((BENCHMARKS / "results" / f"quality-{name}.json").read_text())["figures"]
    served, coming = page.split("**Classes to come**")
    said: dict[str, str] = {}
    for text, mapped in ((served, "last_r1_mapped"), (coming, "unseen_r1_mapped")):
        for row in re.findall(r"^\|([^|]*)`(\w+)`([^|]*)\| (.+) \|$", text, re.MULTILINE):
            value = row[3].split(" | ")[column].split()
            figure = "last_r1_reextracted" if "re-extracted" in row[2] else mapped
            said |= {f"{row[1]}/{figure}": value[0]} if value else {}
    assert {"ours/last_r1_mapped", "distilled/last_r1_mapped", "ours/unseen_r1_mapped"} <= set(said)
    assert said == {key: f"{figures[key]:.3f}" for key in said}


@pytest.mark.parametrize(
    ("column", "name"), [(0, "omniglot-400-bonus"), (2, "alphabets-bonus"), (4, "alphabets-small-bonus")]
)
def test_the_table_of_the_bonus_has_the_measured_recalls(column: int, name: str) -> None:
    page = PAGE[PAGE.index("### A bonus for classes to come") : PAGE.index("## The frame")]
    measured = curves(pq.read_table(BENCHMARKS / "results" / f"quality-{name}.parquet").to_pylist())
    rows = re.findall(r"^\| `(\w+)`, ([^|]+) \| (.+) \|$", page, re.MULTILINE)
    figures = {
        "classes to come": "unseen_r1_mapped",
        "known classes": "seen_r1_mapped",
        "last served": "last_r1_mapped",
    }
    assert len(rows) == 9
    for method, what, cells in rows:
        mean, minus = cells.split(" | ")[column : column + 2]
        ours, found = (seed_figures(measured, one)[figures[what]] for one in ("ours", method))
        assert mean == f"{sum(found.values()) / len(found):.3f}", (method, what)
        assert method == "ours" or minus.split() == [f"{ours[s] - found[s]:+.3f}" for s in sorted(found)]


def test_the_table_of_small_bases_has_the_measured_differences() -> None:
    page = PAGE[PAGE.index("## Small bases") : PAGE.index("## Drawings")]
    table = page[page.index("| seeds 0 1 2, minus `exact_frozen`") :].split("\n\n")[0]
    rows = re.findall(
        r"^\| \[[^]]*\]\(results/([\w-]+)\.md\)[^|]*\| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE
    )
    assert len(rows) == 3
    for name, *cells in rows:
        measured = curves(pq.read_table(BENCHMARKS / "results" / f"{name}.parquet").to_pylist())
        frozen = seed_figures(measured, "exact_frozen")["last_r1_mapped"]
        for said, method in zip(cells, ("ours_backfill", "ours"), strict=True):
            served = seed_figures(measured, method)["last_r1_mapped"]
            assert said.split() == [f"{served[seed] - frozen[seed]:+.3f}" for seed in (0, 1, 2)], (
                name,
                method,
            )


def test_every_result_that_the_page_names_is_there() -> None:
    for link in re.findall(r"\]\(((?:results|\.\.)/[^)#]+)", PAGE):
        assert (BENCHMARKS / link).exists(), link
