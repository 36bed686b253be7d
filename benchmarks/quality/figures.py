"""From rows to the figures and the table that people compare."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.rows import Row
from benchmarks.quality.scores import average_incremental_recall, backward_transfer, forgetting

Floats = NDArray[np.float64]

Curves = dict[tuple[str, str, str, str], dict[int, dict[int, float]]]
"""(method, split, gallery, metric) -> seed -> stage -> value"""

COLUMNS: Mapping[str, str] = {
    "avg_inc_r1_reextracted": "avg inc R@1",
    "avg_inc_r1_mapped": "avg inc, mapped",
    "last_r1_reextracted": "last R@1",
    "last_r1_mapped": "last, mapped",
    "last_r1_oracle": "last, oracle map",
    "last_r1_stale": "last, stale",
    "last_base_r1_mapped": "base classes, mapped",
    "last_later_r1_mapped": "later ones, mapped",
    "last_r10_mapped": "last R@10, mapped",
    "last_map_at_r_mapped": "last mAP@R, mapped",
    "unseen_r1_mapped": "unseen",
    "unseen_r1_whitened": "unseen, whitened",
    "unseen_alone_r1_mapped": "unseen alone",
    "base_forgetting": "forgetting, base",
    "base_forgetting_mapped": "the same, mapped",
    "backward_transfer_mapped": "backward transfer, mapped",
    "forward_transfer_mapped": "forward transfer",
    "compatibility_ac_mapped": "AC",
    "compatibility_bc_mapped": "BC",
    "compatibility_fc_mapped": "FC",
    "train_s": "seconds",
    "pass_s": "seconds, last passes and heads",
    "item_bytes": "bytes an item",
    "class_bytes": "a class",
    "version_bytes": "a version",
}
WHOLE = ("train_s", "pass_s", "item_bytes", "class_bytes", "version_bytes")
"""Columns of whole numbers: what a method costs."""
RESAMPLES = 10_000


def curves(rows: Iterable[Row]) -> Curves:
    """Rows by what they measure."""
    table: Curves = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        key = (row["method"], row["split"], row["gallery"], row["metric"])
        table[key][row["seed"]][row["stage"]] = row["value"]
    return table


def seed_figures(table: Curves, method: str) -> dict[str, dict[int, float]]:
    """Figure -> seed -> value, of the seeds whose last stage has been measured."""
    seconds = _last(table.get((method, "all", "none", "train_s"), {}))
    steps = _last(table.get((method, "all", "none", "steps"), {}))
    result: dict[str, dict[int, float]] = {"train_s": seconds, "steps": steps}
    for name in WHOLE[2:]:
        result[name] = _last(table.get((method, "all", "none", name), {}))
    passes = table.get((method, "all", "none", "pass_s"), {})
    # Those of the first task, which all methods share, are not in the seconds either.
    result["pass_s"] = {
        s: sum(v for t, v in by_stage.items() if t) for s, by_stage in passes.items() if s in seconds
    }
    for form in ("reextracted", "mapped", "oracle", "stale"):
        union = {
            s: v for s, v in table.get((method, "union", form, "recall_at_1"), {}).items() if s in seconds
        }
        result[f"last_r1_{form}"] = _last(union)
        result[f"avg_inc_r1_{form}"] = {
            s: average_incremental_recall(list(v.values())) for s, v in union.items()
        }
        for name, metric in (("map_at_r", "map_at_r"), ("r10", "recall_at_10")):
            by_seed = table.get((method, "union", form, metric), {})
            result[f"last_{name}_{form}"] = _last({s: v for s, v in by_seed.items() if s in seconds})
    for form in ("mapped", "whitened"):
        for split in ("unseen", "unseen_alone", "seen"):
            by_seed = table.get((method, split, form, "recall_at_1"), {})
            result[f"{split}_r1_{form}"] = {
                s: float(np.mean(list(v.values()))) for s, v in by_seed.items() if s in seconds
            }
    for name, split, form in (
        ("base_forgetting", "base_alone", "reextracted"),
        ("base_forgetting_mapped", "base_alone", "mapped"),
        ("base_forgetting_union", "stage 0", "reextracted"),
    ):
        base = table.get((method, split, form, "recall_at_1"), {})
        result[name] = {
            s: max(v[t] for t in sorted(v)[:-1]) - v[max(v)]
            for s, v in base.items()
            if s in seconds and len(v) > 1
        }
    for form in ("reextracted", "mapped"):
        for seed in seconds:
            recall_TT = _by_task(table, method, form, seed)
            if recall_TT is not None:
                result.setdefault(f"forgetting_{form}", {})[seed] = forgetting(recall_TT)
                result.setdefault(f"backward_transfer_{form}", {})[seed] = backward_transfer(recall_TT)
                result.setdefault(f"last_base_r1_{form}", {})[seed] = float(recall_TT[-1, 0])
                if len(recall_TT) > 1:
                    result.setdefault(f"last_later_r1_{form}", {})[seed] = float(recall_TT[-1, 1:].mean())
    for seed in seconds:
        if (transfer := _forward_transfer(table, method, seed)) is not None:
            result.setdefault("forward_transfer_mapped", {})[seed] = transfer
    for form in ("mapped", "stale"):
        for seed in seconds:
            for name, value in _compatibility(table, method, form, seed).items():
                result.setdefault(f"compatibility_{name}_{form}", {})[seed] = value
    return {name: values for name, values in result.items() if values}


def _forward_transfer(table: Curves, method: str, seed: int) -> float | None:
    """Return the mean over tasks to come, after the first of them, of the recall among their classes before they are
    learnt, minus that of the model that stopped after the first task, which has the same kind of head. So Lopez-Paz and
    Ranzato (NeurIPS 2017) have it, but that theirs has learnt nothing at all."""
    is_solved = (method, "unseen_alone", "whitened", "recall_at_1") in table
    own, stopped = (
        table.get((name, "unseen_alone", "mapped", "recall_at_1"), {}).get(seed, {})
        for name in (method, "exact_frozen" if is_solved else "frozen_f0")
    )
    stages = [t for t in own if t > 0 and t in stopped]
    return float(np.mean([own[t] - stopped[t] for t in stages])) if stages else None


def _compatibility(table: Curves, method: str, form: str, seed: int) -> dict[str, float]:
    """Summaries of the matrix M[t, k], queries by version t against a gallery by version k, as Biondi et al. (CL2R, ACM
    TOMM 2022) have them: `ac`, the share of pairs t > k with M[t, k] >= M[k, k]; `bc`, the mean of M[T, k] - M[k, k];
    `fc`, the mean of M[t, t - 1] - M[t, t]. Empty where it was not measured, or of one version."""
    cells = {
        (int(split.split()[2]), int(split.split()[1])): by_seed[seed][max(by_seed[seed])]
        for (name, split, gallery, _), by_seed in table.items()
        if (name, gallery) == (method, form) and split.startswith("compatibility") and seed in by_seed
    }
    last = max((t for t, _ in cells), default=0)
    if not last:
        return {}
    return {
        "ac": float(np.mean([cells[t, k] >= cells[k, k] for t, k in cells if t > k])),
        "bc": float(np.mean([cells[last, k] - cells[k, k] for k in range(last)])),
        "fc": float(np.mean([cells[t, t - 1] - cells[t, t] for t in range(1, last + 1)])),
    }


def bootstrap_interval(differences: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds `share` of the means of as many differences, drawn with replacement (percentile
    bootstrap over seeds). Of few seeds all draws are made, so it says no more than these seeds can."""
    values = np.asarray(differences, np.float64)
    n = len(values)
    if n**n <= RESAMPLES:
        draws = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _by_task(table: Curves, method: str, form: str, seed: int) -> Floats | None:
    """Recall@1 [t, k], NaN above the diagonal, after stage t of the classes that came with stage k, among all that had
    come; None where not all of it was measured."""
    last = max(table.get((method, "union", form, "recall_at_1"), {}).get(seed, {0: 0.0}))
    found = np.full((last + 1, last + 1), np.nan)
    for k in range(last + 1):
        measured = table.get((method, f"stage {k}", form, "recall_at_1"), {}).get(seed, {})
        if not measured.keys() >= set(range(k, last + 1)):
            return None
        found[k:, k] = [measured[t] for t in range(k, last + 1)]
    return found


def flat_figures(rows: Sequence[Row], methods: Iterable[str]) -> dict[str, float]:
    """`M/<figure>`: means over seeds; a figure that was not measured is absent."""
    table = curves(rows)
    flat: dict[str, float] = {}
    for method in methods:
        by_name = seed_figures(table, method)
        flat |= {
            f"{method}/{name}": float(np.mean(list(values.values()))) for name, values in by_name.items()
        }
        average = list(by_name.get("avg_inc_r1_reextracted", {}).values())
        if len(average) > 1:
            flat[f"{method}/avg_inc_r1_std"] = float(np.std(average, ddof=1))
    return flat


def markdown_table(rows: Sequence[Row], methods: Iterable[str]) -> str:
    """Mean ± deviation over seeds, one line a method that has finished at least once."""
    table = curves(rows)
    measured = {method: seed_figures(table, method) for method in methods}
    columns = [name for name in COLUMNS if any(name in by_name for by_name in measured.values())]
    titles = [COLUMNS[name] for name in columns]
    lines = ["| method | seeds | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
    for method, by_name in measured.items():
        if by_name:
            cells = [_cell(by_name.get(name, {}), 0 if name in WHOLE else 4) for name in columns]
            lines.append(f"| {method} | {len(by_name['train_s'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def paired_table(rows: Sequence[Row], methods: Sequence[str], reference: str) -> str:
    """`reference` minus each other method, seed by seed: what a mean over seeds would hide; in brackets the interval of
    its mean by `bootstrap_interval`."""
    table = curves(rows)
    ours = seed_figures(table, reference)
    names = ("avg_inc_r1_reextracted", "last_r1_reextracted", "last_r1_mapped")
    lines = [f"| {reference} minus | " + " | ".join(COLUMNS[name] for name in names) + " |", "|---" * 4 + "|"]
    for method in methods:
        theirs = seed_figures(table, method)
        cells = []
        for name in names:
            a, b = ours.get(name, {}), theirs.get(name, {})
            cells.append(_differences([a[s] - b[s] for s in sorted(a) if s in b]))
        if method != reference and theirs:
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _differences(values: Sequence[float]) -> str:
    if not values:
        return "–"
    text = ", ".join(f"{value:+.4f}" for value in values)
    if len(values) == 1:
        return text
    low, high = bootstrap_interval(values)
    return f"{text} [{low:+.4f}, {high:+.4f}]"


def _last(by_seed: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    return {seed: values[max(values)] for seed, values in by_seed.items()}


def _cell(values: Mapping[int, float], digits: int) -> str:
    if not values:
        return "–"
    numbers = list(values.values())
    spread = f" ± {np.std(numbers, ddof=1):.{digits}f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.{digits}f}{spread}"
