"""Plots of a report as inline SVG, and its style sheet: light and dark by the reader's setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
