"""The study's front table says what was measured."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.quality.figures import Curves, bootstrap_interval, curves, seed_figures
from benchmarks.quality.methods import parse_methods
from benchmarks.quality.parts import PARTS
from benchmarks.quality.rivals import Ranpac
from stream_odml.learn.settings import StageSettings

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
        "`ranpac_logits`, 2,000 random features, last served, minus that of `ours`": (
            "ranpac_logits",
            "ours",
        ),
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
    numbers = {"three": 3, "five": 5, "eight": 8, "ten": 10}
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


def test_the_table_of_ranpac_has_the_measured_differences() -> None:
    part = PAGE[PAGE.index("## RanPAC") : PAGE.index("## The sealed stream")]
    answer = PAGE[PAGE.index("**The answer.**") : PAGE.index("## Findings")]
    methods = {
        "the head of now (`exact_frozen`)": "exact_frozen",
        "the same with 2,048 random features (`lift2048`)": "lift2048",
        "the head of now, a trunk that moves (`ours`)": "ours",
        "scores as vectors, 10,000 random features": "ranpac_logits",
        "scores as vectors, 2,000": "ranpac_logits_2000",
        "told classes, 10,000": "ranpac",
        "told classes, 2,000": "ranpac_2000",
    }
    in_front = {
        "ranpac_logits": "RanPAC, 10,000 random features, base stages of its own",
        "ours": "the head of now: `ours`",
    }
    by_stream: defaultdict[str, list[str]] = defaultdict(list)
    for column, name in enumerate(STREAMS):
        measured = curves(pq.read_table(BENCHMARKS / "results" / f"{name}-ranpac.parquet").to_pylist())
        figures = {method: seed_figures(measured, method) for method in measured_methods(measured)}
        before = figures["exact_frozen_before"]["last_r1_mapped"]
        for label, method in methods.items():
            cell = re.findall(rf"^\| {re.escape(label)} \| (.+) \| (.+) \|$", part, re.MULTILINE)[0][column]
            served = figures[method]["last_r1_mapped"]
            assert len(served) == 5, method
            minus = [served[seed] - before[seed] for seed in sorted(served)]
            low, high = bootstrap_interval(minus)
            said = " ".join(f"{one:+.3f}" for one in minus)
            assert cell == f"{said} [{low:+.3f}, {high:+.3f}]", (label, name)
            by_stream[method].append(f"{statistics.mean(minus):.3f}")
        for method, label in in_front.items():
            cell = re.findall(rf"^\| {re.escape(label)}[^|]*\| (.+) \| (.+) \|$", answer, re.MULTILINE)[0][
                column
            ]
            recalls = [*figures[method]["last_r1_mapped"].values()]
            assert cell == f"{statistics.mean(recalls):.3f} ± {statistics.stdev(recalls):.3f}", method
        for method in ("ranpac_logits", "exact_frozen_before", "exact_frozen", "ours"):
            for what in ("unseen_r1_mapped", "seen_r1_mapped"):
                assert f"{statistics.mean(figures[method][what].values()):.3f}" in part, (name, method, what)
    says = {
        "ranpac_logits": "its scores as vectors {} and {} more than our head did",
        "exact_frozen": "for no byte, and finds {} and {} more there",
        "lift2048": "with 2,048 random features {} and {}, and",
        "ours": "where the trunk moves (`ours`) {} and {} ([the figures]",
    }
    for method, phrase in says.items():
        assert phrase.format(*by_stream[method]) in re.sub(r"\s+", " ", answer), method


def measured_methods(measured: Curves) -> set[str]:
    return {method for method, *_ in measured}


def test_the_sealed_stream_has_the_measured_differences_of_ranpac() -> None:
    rows = pq.read_table(BENCHMARKS / "results" / "quality-caltech101-ranpac.parquet").to_pylist()
    measured, said = curves(rows), re.sub(r"\s+", " ", PAGE)
    figures = {method: seed_figures(measured, method) for method in measured_methods(measured)}

    def minus(method: str, other: str = "exact_frozen_before") -> str:
        one, two = (figures[name]["last_r1_mapped"] for name in (method, other))
        assert len(one) == 3
        return " ".join(f"{one[seed] - two[seed]:+.3f}" for seed in sorted(one))

    def means(what: str, *methods: str) -> list[str]:
        return [f"{statistics.mean(figures[method][what].values()):.3f}" for method in methods]

    served = [*figures["ours"]["last_r1_mapped"].values()]
    assert f"serves {statistics.mean(served):.3f} ± {statistics.stdev(served):.3f}, " in said
    assert f"{minus('ours', 'ranpac_logits')} more than RanPAC's scores as vectors, and " in said
    assert f"{minus('ours', 'exact_frozen')} more than the frozen trunk under that head" in said
    assert f"rival that ranks items ({minus('ours', 'ranpac_logits')} over RanPAC" in said
    assert (
        f"RanPAC's vectors find {minus('ranpac_logits')} ({minus('ranpac_logits_2000')} with 2,000), "
        f"told classes {minus('ranpac')} ({minus('ranpac_2000')}), the head of now {minus('exact_frozen')}, "
        f"`ours` with it {minus('ours')}."
    ) in said
    assert f"RanPAC is ahead, with {means('last_r1_mapped', 'ranpac')[0]}." in said
    three = ("ranpac_logits", "ours", "exact_frozen_before")
    wide, ours, before = means("unseen_r1_mapped", *three)
    assert f"it finds {wide}, `ours` {ours}, the head before {before}; known ones beside them " in said
    assert ", ".join(means("seen_r1_mapped", *three)) in said


def test_drawings_have_the_measured_figures_of_ranpac() -> None:
    part = re.sub(r"\s+", " ", PAGE[PAGE.index("**RanPAC finds more of known characters**") :])
    measured = curves(
        pq.read_table(BENCHMARKS / "results" / "quality-omniglot-400-ranpac.parquet").to_pylist()
    )
    wide, ours = (seed_figures(measured, method) for method in ("ranpac_logits", "ours"))
    last, mine = wide["last_r1_mapped"], ours["last_r1_mapped"]
    assert f"find {' '.join(f'{last[seed] - mine[seed]:+.3f}' for seed in sorted(last))} more" in part

    def mean(method: str, what: str = "last_r1_mapped") -> str:
        return f"{statistics.mean(seed_figures(measured, method)[what].values()):.3f}"

    assert f"than `ours`, {mean('ranpac_logits')} in the mean" in part
    assert f"of all items {mean('ranpac')}, `fecam` {mean('fecam')}." in part
    unseen, seen = ("unseen_r1_mapped", "seen_r1_mapped")
    assert (
        f"finds {mean('ranpac_logits', unseen)} of classes to come, where `ours` finds {mean('ours', unseen)}"
        in part
    )
    assert f"and {mean('ranpac_logits', seen)} of known ones, `ours` {mean('ours', seen)}." in part
    assert f"`stored_head`, finds {mean('stored_head')}." in part


def test_ranpac_is_tuned_as_validation_images_say() -> None:
    part = re.sub(r"\s+", " ", PAGE[PAGE.index("## RanPAC") : PAGE.index("## Tasks without clean borders")])

    def last(name: str) -> dict[str, float]:
        rows = pq.read_table(BENCHMARKS / "results" / f"validation-{name}-ranpac.parquet").to_pylist()
        assert {row["select"] for row in rows} == {"validation"}
        measured = curves(rows)
        return {
            method: seed_figures(measured, method)["last_r1_mapped"][0]
            for method in {r["method"] for r in rows}
        }

    def said(found: Mapping[str, float], *methods: str) -> str:
        return " ".join(f"{found[method]:.3f}" for method in methods)

    flowers, drawings = last("flowers102"), last("omniglot-400")
    wide = [f"logits_10000_1e{power}" for power in (4, 5, 6)]
    assert f"1e4, 1e5, 1e6: {said(flowers, *wide)}; of 2,000, 1e5: {said(flowers, 'logits_2000_1e5')}" in part
    ridges = [f"1e{power}" for power in (0, 2, 4, 6)]
    vectors = [f"logits_5000_{ridge}" for ridge in ridges], ("logits_10000_1e2", "logits_10000_1e4")
    assert (
        f"{said(drawings, *vectors[0])}, with 10,000 and ridges of 1e2, 1e4 {said(drawings, *vectors[1])}"
        in part
    )
    classes = said(drawings, *(f"ranpac_5000_{ridge}" for ridge in ridges))
    others = [said(drawings, method) for method in ("exact_frozen", "fecam", "stored_head")]
    assert (
        f"told classes (5,000) {classes}; `exact_frozen` {others[0]}, `fecam`, told classes, {others[1]}"
        in part
    )

    def taken(stream: str, method: str) -> tuple[float, float]:
        methods = next(each.methods for each in PARTS if each.name == f"quality-{stream}")
        rival = next(m.rival for m in parse_methods(methods, StageSettings()) if m.name == method)
        assert isinstance(rival, Ranpac)
        return rival.width, rival.ridge

    for stream, found in (("flowers102", flowers), ("omniglot-400", drawings)):
        for method, prefix in (("ranpac_logits", "logits_"), ("ranpac", "ranpac_")):
            best = max(value for name, value in found.items() if name.startswith(prefix))
            width, ridge = taken(stream, method)
            # The first of equals; a hundredth of a thousandth is no difference.
            assert found[f"{prefix}{width}_1e{math.log10(ridge):.0f}"] == pytest.approx(best, abs=1e-5)
