"""One self-contained HTML file about a stream: no script, no font, no picture comes from elsewhere.

Plots are inline SVG, light and dark by the reader's setting.

Protects: every name that came with the data is escaped; a figure that was not measured is a dash, never a zero.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape as escape_markup
from pathlib import Path
from typing import Any

from stream_odml.cli.report_data import Example, ReportData, report_data
from stream_odml.config.masking import masked_text
from stream_odml.ingest.fields import written_out
from stream_odml.storage.atomic import write_named

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 240, 54, 28, 12, 12

CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1d1f23;--soft:#666c76;--line:#dcdee2;--card:#fff;
--c0:#2563c9;--c1:#c2570c;--c2:#15803d;--ok:#15803d;--bad:#c2261c}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--fg:#e7e9ec;--soft:#9aa1ac;--line:#30343b;--card:#1c1f25;
--c0:#74a9ff;--c1:#f2a05c;--c2:#62cf8b;--ok:#62cf8b;--bad:#ff8578}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 16px 64px}h1{margin:0;font-size:26px}h2{font-size:19px;margin:0 0 4px}
h3{font-size:15px;margin:16px 0 4px}.sub,p{color:var(--soft);margin:2px 0 10px;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:16px 0}
section{overflow-x:auto}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin:16px 0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 12px}
.tiles span{display:block;color:var(--soft);font-size:12px}.tiles b{font-size:17px;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--soft);font-size:13px}
svg{width:100%;min-width:520px;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.grid{stroke:var(--line)}.key{display:flex;flex-wrap:wrap;gap:14px;font-size:13px;color:var(--soft)}
.key i{display:inline-block;width:16px;height:3px;vertical-align:middle;margin-right:6px}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:6px 10px;align-items:center}
.bars i{height:12px;background:var(--c0);border-radius:3px;min-width:2px}
.example{display:flex;gap:14px;border-top:1px solid var(--line);padding:10px 0;flex-wrap:wrap}
.near{display:flex;gap:8px;flex-wrap:wrap}figure{margin:0;width:84px;font-size:11px}
figure img,.blank{width:84px;height:84px;object-fit:contain;display:block;border:3px solid var(--line);
border-radius:6px;background:#fff}.blank{display:grid;place-items:center;color:#777;text-align:center}
.right img,.right .blank{border-color:var(--ok)}.wrong img,.wrong .blank{border-color:var(--bad)}
.right figcaption{color:var(--ok)}.wrong figcaption{color:var(--bad)}figcaption{overflow-wrap:anywhere}
.query figcaption{font-weight:600}.none{font-style:italic}
@media print{section{break-inside:avoid}}
"""


@dataclass(frozen=True)
class Line:
    """A named series over versions; None where nothing was measured."""

    name: str
    values: Sequence[float | None]


def line_plot(lines: Sequence[Line], what: str, unit_range: bool = True) -> str:
    """Draw lines over stages 1..n; `unit_range` fixes the axis to 0..1 where the values allow."""
    known = [value for line in lines for value in line.values if value is not None]
    if not known:
        return '<p class="none">Nothing was measured: no images were held out.</p>'
    top = 1.0 if unit_range and max(known) > 0.5 else max(max(known) * 1.1, 1e-3)
    low = min(0.0, min(known) * 1.1)
    count = max(len(line.values) for line in lines)

    def x(i: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (top - low))

    lines_at = [low + (top - low) * step / 4 for step in range(5)]
    places = 2 if top - low >= 0.1 else 3 if top - low >= 0.01 else 4
    parts = [_grid(value, y(value), places) for value in lines_at]
    every = max(1, count // 12)
    parts += [
        f'<text x="{x(i):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{i + 1}</text>'
        for i in range(0, count, every)
    ]
    for number, line in enumerate(lines):
        at = [(x(i), y(value)) for i, value in enumerate(line.values) if value is not None]
        colour = f"var(--c{number})"
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in at)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in at]
    key = "".join(
        f'<span><i style="background:var(--c{i})"></i>{line.name}</span>' for i, line in enumerate(lines)
    )
    return (
        f'<div class="key">{key}</div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{what} by stage">'
        + "".join(parts)
        + "</svg>"
    )


def _grid(value: float, at: float, places: int) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.{places}f}</text>'
    )


def bars(counts: Mapping[str, int]) -> str:
    """Draw horizontal bars; the names are HTML already."""
    most = max(counts.values())
    rows = "".join(
        f'<span>{name}</span><i style="width:{100 * count / most:.1f}%"></i><span>{count:,}</span>'
        for name, count in counts.items()
    )
    return f'<div class="bars">{rows}</div>'


QUERIES, NEIGHBOURS = 24, 6


def write_report(
    root: str, path: str, queries: int = QUERIES, seed: int = 0, latency: Mapping[str, float] | None = None
) -> ReportData:
    """Write the report of `root` to `path`; `latency` in ms by name, where it is known."""
    data = report_data(root, queries, NEIGHBOURS, seed)
    text = page(data, latency or {})
    write_named(Path(path), lambda file: file.write(text.encode()))
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
