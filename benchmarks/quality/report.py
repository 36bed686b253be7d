"""JSON, a Markdown table and one HTML page from the rows that a study has measured."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from benchmarks.common import Report
from benchmarks.quality.figures import curves, flat_figures, markdown_table, paired_table
from benchmarks.quality.plots import heat_maps, recall_plots
from benchmarks.quality.rows import Row

_SKETCH = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px system-ui;max-width:72rem;margin:2rem auto;padding:0 1rem}}img{{max-width:100%}}
pre{{overflow:auto;background:#f6f6f6;padding:1rem}}</style>
<h1>{title}</h1><p>{note}</p><pre>{table}</pre>{images}"""


def write_report(
    out: Path,
    name: str,
    title: str,
    rows: list[Row],
    methods: list[str],
    seeds: list[int],
    quick: bool,
    remark: str = "",
) -> str:
    """Write `<name>.json` (figures), `.parquet` (rows), `.md` and `.html` to `out`; return the Markdown.

    What was not measured is absent.
    """
    result = Report(name, out, seeds, quick, rows_as_parquet=True)
    result.figures.update(flat_figures(rows, methods))
    last = max((row["stage"] for row in rows), default=0)
    result.rows.extend(row for row in rows if _is_kept(row, last))
    result.write()
    note = " ".join(part for part in (_note(rows, methods, seeds, quick), remark) if part)
    tables = markdown_table(rows, methods) + "\n" + paired_table(rows, methods, methods[0])
    (out / f"{name}.md").write_text(f"# {title}\n\n{note}\n\n{tables}")
    table = curves(rows)
    pictures = [*recall_plots(table, methods), *heat_maps(table, methods)]
    images = "".join(f'<p><img alt="plot" src="data:image/png;base64,{_text(png)}"></p>' for png in pictures)
    page = _SKETCH.format(
        title=html.escape(title), note=html.escape(note), table=html.escape(tables), images=images
    )
    (out / f"{name}.html").write_text(page)
    return f"{note}\n\n{tables}"


def _is_kept(row: Row, last: int) -> bool:
    """Whether the result keeps a row. Recall at more than one is kept of the union alone; the classes of one stage, of
    which there are as many rows as the square of the stages, when they have come and at the end."""
    if row["split"].startswith("stage"):
        looked_at = row["stage"] in (int(row["split"].split()[1]), last)
        return bool(
            looked_at and row["metric"] == "recall_at_1" and row["gallery"] in ("reextracted", "mapped")
        )
    return bool(
        row["split"] == "union"
        or not row["metric"].startswith("recall_at_")
        or row["metric"] == "recall_at_1"
    )


def _note(rows: list[Row], methods: list[str], seeds: list[int], quick: bool) -> str:
    """What a reader must know before the numbers."""
    done = {(row["method"], row["seed"]) for row in rows if row["metric"] == "train_s"}
    missing = [f"{m} seed {s}" for m in methods for s in seeds if (m, s) not in done]
    commits = ", ".join(sorted({row["git"] for row in rows})) or "none"
    images = "validation" if any(row["select"] == "validation" for row in rows) else "test"
    parts = [f"Measured on {images} images; commits {commits}."]
    if quick:
        parts.append("A quick run: a look, not a claim.")
    if missing:
        parts.append(f"Partial: not finished are {', '.join(missing)}.")
    return " ".join(parts)


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode()
