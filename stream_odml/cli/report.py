"""One self-contained HTML file about a stream: no script, no font, no picture comes from elsewhere.

Protects: every name that came with the data is escaped; a figure that was not measured is a dash, never a zero.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape as escape_markup
from typing import Any

from stream_odml.cli.report_data import Example, ReportData, report_data
from stream_odml.cli.report_plots import CSS, Line, bars, line_plot
from stream_odml.config.masking import masked_text
from stream_odml.ingest.fields import written_out

QUERIES, NEIGHBOURS = 24, 6


def write_report(
    root: str, path: str, queries: int = QUERIES, seed: int = 0, latency: Mapping[str, float] | None = None
) -> ReportData:
    """Write the report of `root` to `path`; `latency` in ms by name, where it is known."""
    data = report_data(root, queries, NEIGHBOURS, seed)
    text = page(data, latency or {})
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return data


def page(data: ReportData, latency: Mapping[str, float]) -> str:
    """Return the whole HTML document."""
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    sections = [
        ("Recall over stages", _recall(data)),
        ("Tasks that were not learnt", _not_learnt(data)),
        ("Forgetting", _forgetting(data)),
        ("Served against re-extracted", _gap(data)),
        ("Drift", _drift(data)),
        ("Latency", _latency(data, latency)),
        ("Quarantine", _quarantine(data)),
        ("Queries and their neighbours", _examples(data.examples)),
    ]
    body = "\n".join(f"<section><h2>{title}</h2>{text}</section>" for title, text in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>stream_odml report: {escape(data.head)}</title><style>{CSS}</style></head>"
        f"<body><main><h1>Stream report</h1><p class=sub>{escape(masked_text(data.root))} · {when}</p>"
        f"{_tiles(data)}{body}</main></body></html>\n"
    )


def _tiles(data: ReportData) -> str:
    last = data.versions[-1] if data.versions else {}
    right = sum(example.right for example in data.examples)
    tiles = [
        ("served version", escape(data.head)),
        ("items", f"{data.items:,}"),
        ("classes", f"{data.classes:,}"),
        ("stages", str(len(data.versions))),
        ("Recall@1, all classes", _figure(last.get("union_served"))),
        ("forgetting", _figure(last.get("forgetting"))),
        ("examples right", f"{right} of {len(data.examples)}" if data.examples else "–"),
    ]
    return (
        "<div class=tiles>" + "".join(f"<div><span>{k}</span><b>{v}</b></div>" for k, v in tiles) + "</div>"
    )


def _plot(data: ReportData, note: str, what: str, *lines: tuple[str, str], unit_range: bool = True) -> str:
    """Draw figures of versions, by their key and their name."""
    drawn = [Line(name, [row.get(key) for row in data.versions]) for key, name in lines]
    return f"<p>{note}</p>{line_plot(drawn, what, unit_range)}"


def _recall(data: ReportData) -> str:
    columns = [
        ("version", "version"), ("classes", "classes"), ("new_served", "new"), ("old_served", "old"),
        ("union_served", "all"), ("union_reextracted", "all, re-extracted"), ("union_stale", "all, without maps"),
        ("forgetting", "forgetting"),
    ]  # fmt: skip
    rows = [[_cell(row[key]) for key, _ in columns] for row in data.versions]
    return _plot(
        data,
        "Recall@1 on held-out images as served: new model, mapped gallery.",
        "Recall@1",
        ("union_served", "all classes"),
        ("old_served", "old classes"),
        ("new_served", "new classes"),
    ) + _table([title for _, title in columns], rows)


def _forgetting(data: ReportData) -> str:
    note = "Mean over earlier tasks of the best Recall@1 so far minus the one now; lower is better."
    text = _plot(data, note, "forgetting", ("forgetting", "forgetting"))
    if data.lost_classes:
        rows = [[escape(name), f"{a:.2f}", f"{b:.2f}"] for name, a, b in data.lost_classes]
        text += "<h3>Classes that lost most in the last stage</h3>" + _table(["class", "before", "now"], rows)
    return text


def _not_learnt(data: ReportData) -> str:
    if not data.not_learnt:
        return "<p class=none>Every task that closed is learnt, or waits to be.</p>"
    rows = [
        [escape(t.task), str(t.classes), str(t.images), str(t.attempts), escape(t.reason), escape(t.remedy)]
        for t in data.not_learnt
    ]
    return _table(["task", "classes", "images", "refused", "why", "what to do"], rows)


def _gap(data: ReportData) -> str:
    return _plot(
        data,
        "What mapping the stored vectors costs against embedding every image anew, and what it saves.",
        "Recall@1, all classes",
        ("union_served", "served (mapped)"),
        ("union_reextracted", "re-extracted"),
        ("union_stale", "without maps"),
    )


def _drift(data: ReportData) -> str:
    note = (
        "How far each stage moved the space, and the share of the movement that its map leaves unexplained."
    )
    lines = [
        (name, name.replace("_", " ")) for name in ("drift_relative", "forward_unexplained", "bank_shift")
    ]
    return _plot(data, note, "drift", *lines, unit_range=False)


def _latency(data: ReportData, latency: Mapping[str, float]) -> str:
    rows = [[escape(name), f"{value:.2f} ms"] for name, value in latency.items()]
    for key, title in (("boundary_to_first_step_s", "task closed to first step"), ("seconds", "stage")):
        known = [float(row[key]) for row in data.versions if row[key] is not None]
        if known:
            rows.append([f"{title}, longest", f"{max(known):.2f} s"])
    return _table(["", "time"], rows) if rows else "<p class=none>Nothing was measured.</p>"


def _quarantine(data: ReportData) -> str:
    counts = {escape(name): count for name, count in data.quarantine.items()}
    return bars(counts) if counts else "<p class=none>No row was refused.</p>"


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return "<p class=none>No held-out images: set <code>evaluation.held_out</code> to keep some.</p>"
    rows = "".join(_example(example) for example in examples)
    note = "<p>Held-out images, never learnt from, wrong ones first. A neighbour is marked ✓ if it is of the class.</p>"
    return f"{note}<div class=examples>{rows}</div>"


def _example(example: Example) -> str:
    near = "".join(
        f'<figure class="{"right" if n.right else "wrong"}">{_picture(n.picture, n.class_name)}'
        f"<figcaption>{'✓' if n.right else '✗'} {escape(n.class_name)}<br>{n.score:.3f}</figcaption></figure>"
        for n in example.neighbours
    )
    query = (
        f"<figure class=query>{_picture(example.picture, example.class_name)}"
        f"<figcaption>{escape(example.class_name)}</figcaption></figure>"
    )
    return f"<div class=example>{query}<div class=near>{near}</div></div>"


def _picture(data: bytes | None, name: str) -> str:
    if data is None:
        return "<span class=blank>no picture</span>"
    text = base64.b64encode(data).decode()
    return f'<img src="data:image/jpeg;base64,{text}" alt="{escape(name)}">'


def escape(text: str) -> str:
    """Escape text for HTML, with characters that reorder or hide text written out."""
    return escape_markup(written_out(text, keep="\n\t"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{title}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value: Any) -> str:
    if isinstance(value, str | int):
        return escape(str(value))
    return _figure(value)


def _figure(value: Any) -> str:
    return "–" if value is None else f"{float(value):.3f}"
