"""What a person sees: lines and tables of data on a terminal, and a live panel while a stream runs.

Protects: text that came with the data is shown, never obeyed. Whatever is printed passes `shown`, which takes neither
markup nor control characters: a class may be called `[/red]`, a file ESC[2J.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stream_odml.ingest.fields import written_out

if TYPE_CHECKING:
    from stream_odml.pipeline.examining import Finding

PLAIN_EVERY_S, SAME_EVERY_S = 5.0, 60.0
"""Between two lines of a view that is no terminal, and between two that say the same."""
CURVE = 40
"""Versions that the curve of the live view shows."""


def shown(value: object, style: str = "", keep: str = "") -> Text:
    """Return `value` as text for a terminal, to the letter; `keep`: control characters that are meant."""
    return Text(written_out(str(value), keep), style)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line (or several) that may hold data, unwrapped."""
    console.print(shown(text, style, keep="\n"), soft_wrap=True)


def say_findings(console: Console, found: Iterable[Finding], quiet: bool) -> list[Finding]:
    """Print each finding of some checks when it is found, with what to do, unless `quiet`; return them all."""
    marks = {"ok": ("ok", ""), "warning": ("warning", "yellow"), "failure": ("FAILURE", "red")}
    findings = []
    for finding in found:
        findings.append(finding)
        mark, style = marks[finding.state]
        if not quiet:
            say(console, f"{mark:7}  {finding.check:14} {finding.detail}", style)
        if finding.remedy and not quiet:
            say(console, f"{'':23} -> {finding.remedy}", style)
    return findings


def say_json(value: Any, indent: int | None = None) -> None:
    """Print one JSON document in ASCII."""
    print(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


@contextlib.contextmanager
def waiting(console: Console, text: str) -> Iterator[None]:
    """Say what is waited for, on a terminal with a counter of seconds that goes when the block ends."""
    if not console.is_terminal:
        say(console, f"{text} …")
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


class StreamView:
    """A context: `show` the latest status as often as you like."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._began = time.monotonic()
        self._began_at = time.time()
        self._reported: set[tuple[str, str, int]] = set()
        self._printed = 0.0
        self._line = ""
        self._recalls: dict[str, float] = {}
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> StreamView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> None:
        """Show a driver's status and, if given, the background client's figures (ok, failed, version)."""
        elapsed = time.monotonic() - self._began
        self._tell_refusals(status.get("not_learnt", ()))
        if (served := status["recall_at_1"].get("union/served")) is not None:
            self._recalls[status["head"]] = served
        if self._live is not None:
            curve = recall_curve(list(self._recalls.values()), self._console.options.ascii_only)
            self._live.update(_panel(self._title, elapsed, status, asked, curve))
        else:
            self._print(elapsed, _line(status, asked))

    def _print(self, elapsed: float, line: str) -> None:
        """Print a line into a log: one that says what the last one said once a minute."""
        pause_s = PLAIN_EVERY_S if line != self._line else SAME_EVERY_S
        if not self._line or time.monotonic() - self._printed >= pause_s:
            self._printed, self._line = time.monotonic(), line
            say(self._console, f"{elapsed:6.0f} s  {line}")

    def _tell_refusals(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Say once, above the panel, what was refused since this view began, and what happens next."""
        for task in tasks:
            key = (task["task"], task["state"], task["attempts"])
            if task["since"] < self._began_at or key in self._reported:
                continue
            self._reported.add(key)
            say(self._console, task["in_words"], "yellow")


def _line(status: Mapping[str, Any], asked: Mapping[str, Any] | None) -> str:
    stage, recall = status["stage"], status["recall_at_1"]
    parts = [
        status["head"] or "no version yet",
        f"shards {status['shards'].get('indexed', 0)}/{status['shards'].get('landed', 0)} searchable",
        f"{stage['phase']} {stage['task']} {stage['step']}/{stage['total_steps']}"
        if stage["task"]
        else stage["phase"],
        f"loss {stage['losses'].get('total', float('nan')):.3f}" if stage["losses"] else "",
        "Recall@1 " + ", ".join(f"{_of(s)} {recall[f'{s}/served']:.3f}" for s in _splits(recall))
        if recall
        else "",
        f"queries {asked['ok']} ok {asked['failed']} failed" if asked else "",
        f"PROBLEM {status['problem']}" if status["problem"] else "",
    ]
    return " | ".join(part for part in parts if part)


def _splits(recall: Mapping[str, float]) -> list[str]:
    return [split for split in ("old", "new", "union") if f"{split}/served" in recall]


def _of(split: str) -> str:
    return "all" if split == "union" else split


def recall_curve(recalls: Sequence[float], ascii_only: bool) -> str:
    """Return a bar from 0 to 1 for each of the last versions, and the last figures; empty before the second one."""
    if len(recalls) < 2:
        return ""
    heights = ".:-=+*#%" if ascii_only else "▁▂▃▄▅▆▇█"
    bars = "".join(heights[min(7, max(0, int(8 * recall)))] for recall in recalls[-CURVE:])
    arrow = " > " if ascii_only else " → "
    return f"{bars}  {arrow.join(f'{recall:.3f}' for recall in recalls[-3:])}"


def _panel(
    title: str, elapsed: float, status: Mapping[str, Any], asked: Mapping[str, Any] | None, curve: str
) -> RenderableType:
    stage, recall = status["stage"], status["recall_at_1"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right")
    grid.add_column()
    grid.add_row("version", shown(status["head"] or "-", "bold"))
    shards = status["shards"]
    grid.add_row(
        "shards",
        f"{shards.get('landed', 0)} landed, {shards.get('indexed', 0)} searchable, {shards.get('learnt', 0)} learnt",
    )
    grid.add_row("images", f"{status['images'].get('ingested', 0)} in the gallery, {status['classes']} classes, "
                           f"{status['images'].get('quarantined', 0)} quarantined")  # fmt: skip
    step = f"{stage['step']}/{stage['total_steps']}" if stage["total_steps"] else ""
    grid.add_row("stage", shown(f"{stage['phase']} {stage['task']} {step}"))
    if stage["total_steps"]:
        grid.add_row("", ProgressBar(total=stage["total_steps"], completed=stage["step"], width=40))
    if stage["losses"]:
        losses = "  ".join(f"{name} {value:.3f}" for name, value in stage["losses"].items())
        grid.add_row("loss", shown(losses))
    if recall:
        figures = [
            part
            for split in _splits(recall)
            for part in (f"{_of(split)} ", (f"{recall[f'{split}/served']:.3f}  ", "bold"))
        ]
        grid.add_row("Recall@1", Text.assemble(*figures, "(served)"))
    if curve:
        grid.add_row("by version", shown(curve))
    if asked:
        failed = (f"{asked['failed']} failed", "red" if asked["failed"] else "")
        grid.add_row("queries", Text.assemble(f"{asked['ok']} answered, ", failed))
    if status["problem"]:
        grid.add_row("problem", shown(status["problem"], "red"))
    return Group(shown(f"{title}   {elapsed:.0f} s", "bold"), grid)


_FIGURES = {
    "served": "union_served", "before": "union_parent", "re-extr.": "union_reextracted", "old": "old_served",
    "new": "new_served", "forgot": "forgetting",
}  # fmt: skip


def stage_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of recall over stages; each row as `stage_rows` of the report gives it."""
    table = Table(
        title="Recall@1 on held-out images. Of all classes: as served, by the version before, re-extracted; of old and "
        "of new ones: as served",
        title_justify="left",
    )
    table.add_column("version", no_wrap=True)
    for name in ("classes", *_FIGURES):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        figures = (figure(row.get(key)) for key in _FIGURES.values())
        table.add_row(shown(row["version"]), str(row["classes"]), *figures)
    return table


CLASSES_OF_DIFF = 20


def diff_table(changes: Mapping[str, Any]) -> Group:
    """Return tables of a version diff: figures of both versions, then the classes that changed most."""
    figures = Table(
        "figure",
        title=shown(f"from {changes['from']} to {changes['to']}"),
        title_justify="left",
        expand=False,
    )
    classes = Table("class", title="Recall@1 of a class, as served", title_justify="left")
    for table in (figures, classes):
        for name in ("from", "to", "change"):
            table.add_column(name, justify="right", no_wrap=True)
    for name, row in changes["metrics"].items():
        if name.startswith("recall_at_1/") or name == "forgetting":
            figures.add_row(shown(name), *(figure(row[key]) for key in ("from", "to", "delta")))
    changed = sorted([*changes["gained"], *changes["lost"]], key=lambda row: -abs(row["delta"]))
    for row in changed[:CLASSES_OF_DIFF]:
        classes.add_row(shown(row["class"]), figure(row["from"]), figure(row["to"]), f"{row['delta']:+.3f}")
    said = Text(
        f"{len(changes['gained'])} classes gained recall, {len(changes['lost'])} lost, {changes['unchanged']} "
        f"kept theirs; {len(changes['new_classes'])} are new, {len(changes['gone_classes'])} are gone."
    )
    of = changes["held_out_set"]
    if None not in of.values() and of["from"] != of["to"]:
        sets = f"{of['from']} and {of['to']}"
        said.append(shown(f" Measured on two held-out sets, {sets}: the figures do not compare."))
    return Group(figures, *([classes] if changed else []), said)


def figure(value: float | None) -> str:
    """Format a figure with three digits, or as a dash where it was not measured."""
    return "-" if value is None else f"{value:.3f}"
