"""The study's front table says what was measured."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.quality.figures import Curves, bootstrap_interval, curves, seed_figures
from benchmarks.quality.parts import PARTS

BENCHMARKS = Path(__file__).resolve().parents[1]
PAGE = (BENCHMARKS / "STUDY.md").read_text("utf-8")
STREAMS = ("quality-flowers102", "quality-grocery81")


@pytest.mark.parametrize(("column", "name"), list(enumerate(STREAMS)))
def test_the_front_table_has_the_measured_recalls(column: int, name: str) -> None:
    front = PAGE[: PAGE.index("## Findings")]
    rows = re.findall(r"^\| `(\w+)`(, re-extracted)?[^|]*\| ([^|]+) \| ([^|]+) \|$", front, re.MULTILINE)
    measured = curves(pq.read_table(BENCHMARKS / "results" / f"{name}.parquet").to_pylist())
    assert len(rows) == 13
    for method, again, *cells in rows:
        found = seed_figures(measured, method)["last_r1_reextracted" if again else "last_r1_mapped"]
        assert len(found) == 5, (method, name)
        assert cells[column] == mean_and_deviation(found.values()), (method, name)


@pytest.mark.parametrize(
    ("column", "name"), [(0, "omniglot-400"), (2, "alphabets"), (4, "alphabets-small-bonus")]
)
def test_the_table_of_drawings_has_the_measured_recalls(column: int, name: str) -> None:
    page = PAGE[PAGE.index("## Drawings") : PAGE.index("## The frame")]
    measured = curves(pq.read_table(BENCHMARKS / "results" / f"quality-{name}.parquet").to_pylist())
    rows = re.findall(r"^\| `(\w+)`, ([^|]+) \| (.+) \|$", page, re.MULTILINE)
    figures = {
        "last served": "last_r1_mapped",
        "re-extracted at the end": "last_r1_reextracted",
        "classes to come": "unseen_r1_mapped",
        "known classes beside them": "seen_r1_mapped",
    }
    assert len(rows) == 11
    for method, what, cells in rows:
        mean, minus = (cell.strip() for cell in cells.split(" | ")[column : column + 2])
        found = seed_figures(measured, method).get(figures[what], {})
        if what == "re-extracted at the end":
            served = seed_figures(measured, "ours")["last_r1_mapped"]
            said = [f"{served[seed] / found[seed]:.3f}" for seed in sorted(found)]
            assert minus == (" ".join(said) + " of it" if said else ""), (method, what)
        elif method != "ours":
            ours = seed_figures(measured, "ours")[figures[what]]
            assert minus.split() == [f"{ours[seed] - found[seed]:+.3f}" for seed in sorted(found)], (
                method,
                what,
            )
        assert mean == (f"{sum(found.values()) / len(found):.3f}" if found else ""), (method, what)


@pytest.mark.parametrize(("column", "name"), list(enumerate(STREAMS)))
def test_the_differences_by_the_seed_have_their_intervals(column: int, name: str) -> None:
    measured = curves(pq.read_table(BENCHMARKS / "results" / f"{name}.parquet").to_pylist())
    pairs = {
        "last served, minus `distilled`": ("ours", "distilled"),
        "last served, minus `exact_frozen`": ("ours", "exact_frozen"),
        "`ranpac_logits`, last served, minus that of `ours`": ("ranpac_logits", "ours"),
    }
    for label, methods in pairs.items():
        (cells,) = re.findall(rf"^\| {re.escape(label)} \| (.+) \|$", PAGE, re.MULTILINE)
        one, other = (seed_figures(measured, method)["last_r1_mapped"] for method in methods)
        minus = [one[seed] - other[seed] for seed in sorted(one)]
        low, high = bootstrap_interval(minus)
        said = " ".join(f"{value:+.3f}" for value in minus) + f" [{low:+.3f}, {high:+.3f}]"
        assert cells.split(" | ")[column] == said, label


def test_the_table_of_small_bases_has_the_measured_differences() -> None:
    page = PAGE[PAGE.index("## Small bases") : PAGE.index("## Drawings")]
    table = page[page.index("| by the seed, minus `exact_frozen`") :].split("\n\n")[0]
    rows = re.findall(
        r"^\| \[[^]]*\]\(results/([\w-]+)\.md\)[^|]*\| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE
    )
    assert len(rows) == 3
    for name, *cells in rows:
        measured = curves(pq.read_table(BENCHMARKS / "results" / f"{name}.parquet").to_pylist())
        frozen = seed_figures(measured, "exact_frozen")["last_r1_mapped"]
        for said, method in zip(cells, ("ours_backfill", "ours"), strict=True):
            served = seed_figures(measured, method)["last_r1_mapped"]
            assert len(frozen) >= 3
            assert said.split() == by_seed(served, frozen), (name, method)


def test_the_table_of_parts_has_the_measured_differences() -> None:
    page = PAGE[PAGE.index("## What mutual distillation adds") : PAGE.index("## Drawings")]
    names = ("alphabets-parts", "flowers102-small-gpu")
    drawings, photographs = (
        curves(pq.read_table(BENCHMARKS / "results" / f"quality-{name}.parquet").to_pylist())
        for name in names
    )
    rows = re.findall(r"^\| [^|]*\(`(\w+)`\) \| ([^|]*)\| ([^|]*)\| ([^|]*)\| ([^|]*)\|$", page, re.MULTILINE)
    assert len(rows) == 7

    def after_eight(method: str) -> float:
        by_seed = photographs.get((method, "union", "mapped", "recall_at_1"), {})
        return by_seed.get(0, {}).get(8, math.nan)

    whole = seed_figures(drawings, "exact_always")
    for method, *cells in rows:
        is_whole = method == "exact_always"
        measured = seed_figures(drawings, method)
        for said, figure in zip(
            cells, ("last_r1_mapped", "unseen_r1_mapped", "seen_r1_mapped"), strict=False
        ):
            found = measured.get(figure, {})
            values = [
                f"{value:.3f}" if is_whole else f"{value - whole[figure][seed]:+.3f}"
                for seed, value in sorted(found.items())
            ]
            assert said.split() == values, (method, figure)
        served = after_eight(method)
        says = f"{served:.3f}" if is_whole else f"{served - after_eight('exact_always'):+.3f}"
        assert cells[3].strip() == ("" if math.isnan(served) else says), method


def test_the_page_says_how_many_steps_ours_took_and_on_how_many_tasks() -> None:
    said = re.search(
        r"Flowers ([\d ]+) and Grocery ([\d ]+), where `distilled` took (\d+); the sealed stream ([\d ]+), "
        r"where it took (\d+)\.",
        re.sub(r"\s+", " ", PAGE),
    )
    assert said
    words = "one two three four five six seven eight nine ten eleven twelve"
    numbers = {word: number for number, word in enumerate(words.split(), 1)}
    of_page = re.search(r"(\w+) of (\w+)\s+on Flowers, (\w+) of (\w+) on Grocery and (\w+) of (\w+) on", PAGE)
    assert of_page
    kept = [numbers[word] for word in of_page.groups()]
    parts = (*STREAMS, "quality-caltech101")
    for at, (name, steps, theirs) in enumerate(
        zip(parts, said.group(1, 2, 4), said.group(3, 3, 5), strict=True)
    ):
        table = curves(pq.read_table(BENCHMARKS / "results" / f"{name}.parquet").to_pylist())
        ours, distilled = (seed_figures(table, method)["steps"] for method in ("ours", "distilled"))
        assert steps.split() == [f"{ours[seed]:.0f}" for seed in sorted(ours)], name
        assert set(distilled.values()) == {float(theirs)}, name
        noted = [table["ours", "all", "none", what] for what in ("trunk_tasks", "floor", "over_floor")]
        tasks = [
            noted[0][seed][stage]
            for seed, by_stage in noted[2].items()
            for stage, served in by_stage.items()
            if served > noted[1][seed][stage]
        ]
        assert kept[2 * at : 2 * at + 2] == [sum(n > 1 for n in tasks), len(tasks)], name


def test_every_result_that_the_page_names_is_there() -> None:
    for link in re.findall(r"\]\(((?:results|\.\.)/[^)#]+)", PAGE):
        assert (BENCHMARKS / link).exists(), link


def test_the_table_of_tasks_without_borders_has_the_measured_recalls() -> None:
    page = PAGE[PAGE.index("## Tasks without clean borders") : PAGE.index("## Every method in one frame")]
    rows = re.findall(r"^\| [^|]*`(\w+)` \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    for at, name in ((0, "blurry"), (3, "repeat")):
        measured = curves(
            pq.read_table(BENCHMARKS / "results" / f"quality-flowers102-{name}.parquet").to_pylist()
        )
        ours = seed_figures(measured, "ours")["last_r1_mapped"]
        for method, row in rows:
            served, minus, coming = (cell.strip() for cell in row.split("|")[at : at + 3])
            figures = seed_figures(measured, method)
            found = figures["last_r1_mapped"]
            assert served == mean_and_deviation(found.values()), (method, name)
            assert method == "ours" or minus.split() == by_seed(ours, found), (method, name)
            unseen = figures.get("unseen_r1_mapped", {}).values()
            assert coming == (f"{statistics.fmean(unseen):.3f}" if unseen else ""), (method, name)


def test_the_table_of_the_sealed_stream_has_the_measured_recalls() -> None:
    page = PAGE[PAGE.index("## The sealed stream") : PAGE.index("## Tasks without clean borders")]
    rows = re.findall(r"^\| [^|]*`(\w+)`([^|]*)\| ([^|]+) \| ([^|]*)\|$", page, re.MULTILINE)
    assert len(rows) == 12
    measured = curves(pq.read_table(BENCHMARKS / "results" / "quality-caltech101.parquet").to_pylist())
    ours = seed_figures(measured, "ours")["last_r1_mapped"]
    for method, what, served, minus in rows:
        again = "re-extracted" in what
        found = seed_figures(measured, method)["last_r1_reextracted" if again else "last_r1_mapped"]
        assert served == mean_and_deviation(found.values()), method
        over = [f"{ours[seed] / found[seed]:.3f}" for seed in sorted(found)]
        assert method == "ours" or minus.split() == (
            [*over, "of", "it"] if again else by_seed(ours, found)
        ), method


def mean_and_deviation(values: Collection[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def by_seed(one: Mapping[int, float], other: Mapping[int, float]) -> list[str]:
    return [f"{one[seed] - other[seed]:+.3f}" for seed in sorted(other)]


def test_the_table_of_longer_stages_has_the_measured_differences() -> None:
    page = PAGE[PAGE.index("minus what all parts serve after three stages") : PAGE.index("## Drawings")]
    rows = re.findall(r"^\| [^|]*\(`(\w+)`\) \| ([^|]*)\| ([^|]*)\| ([^|]*)\|$", page, re.MULTILINE)
    assert len(rows) == 7
    files = (("alphabets-small-bonus", "alphabets-parts"), ("alphabets-200",), ("alphabets-1000",))
    for column, names in enumerate(files):
        tables = (pq.read_table(BENCHMARKS / "results" / f"quality-{name}.parquet") for name in names)
        measured = {key: found for table in tables for key, found in curves(table.to_pylist()).items()}

        def served(method: str, measured: Curves = measured) -> float:
            return measured[method, "union", "mapped", "recall_at_1"][0][3]

        for method, *cells in rows:
            whole, found = served("exact_always"), served(method)
            says = f"{found:.3f}" if method == "exact_always" else f"{found - whole:+.3f}"
            assert cells[column].strip() == says, (method, column)


def test_the_table_of_trained_maps_has_what_validation_images_say() -> None:
    rows = pq.read_table(BENCHMARKS / "results" / "validation-flowers102-maps.parquet").to_pylist()
    measured = curves(rows)
    assert {row["select"] for row in rows} == {"validation"}

    def last(method: str) -> str:
        return f"{seed_figures(measured, method)['last_r1_mapped'][0]:.3f}"

    for name, kind in (("LDC", "ldc"), ("low rank", "low_rank"), ("residual network", "residual")):
        cells = re.findall(rf"^\| {name} \| (.+) \|$", PAGE, re.MULTILINE)[0].split(" | ")
        methods = (f"{kind}_l2", f"{kind}100", f"{kind}400", f"{kind}1600")
        assert cells == [last(method) for method in methods], name
        chosen = max(zip(cells, ("20", "100", "400", "1600"), strict=True))[1]
        taken = re.findall(
            rf"\b{kind}_l2:epochs=(\d+)", next(p.methods for p in PARTS if "ldc_l2" in p.methods)
        )
        assert set(taken) == {chosen}, name
    assert f"the mean drift serves {last('mean_l2')} and a rotation {last('orthogonal_l2')}" in PAGE
    assert f"| residual network, of queries | {last('ares20')} |  | {last('ares400')} |  |" in PAGE
