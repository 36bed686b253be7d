"""The command `status` for people: what needs attention first, then what waits for what, rounded and aligned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from stream_odml.cli.console import figure, shown
from stream_odml.wording import some

SHOWN = 5
"""Names that a line lists; the rest are counted."""


def status_text(report: Mapping[str, Any], root: str) -> Group:
    """Return the report of `root_status` as a person reads it; `root` stands in the commands that are advised."""
    parts: list[RenderableType] = [shown(f"{report['root']}   head {report['head'] or 'none yet'}", "bold")]
    urgent = list(attention(report, root))
    parts += [shown(line, "yellow") for line in urgent] or [shown("nothing needs attention", "green")]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, text in facts(report):
        grid.add_row(shown(name), shown(text))
    return Group(*parts, grid)


def attention(report: Mapping[str, Any], root: str) -> Iterator[str]:
    """Yield what a person should do something about, each line with its remedy."""
    if report["problem"]:
        yield f"the stream that runs: {report['problem']}"
    if missing := report.get("missing_files"):
        yield f"{len(missing)} files of the root are missing: {some(missing, SHOWN)}; {report['remedy']}"
    for task in report["not_learnt"]:
        yield task["in_words"]
    for name, problem in list(report["set_aside"].items())[:SHOWN]:
        yield f"shard {name} was dead-lettered: {problem or 'no reason noted'}; fix it and land it under another name"
    if refused := sum(report["quarantined"].values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report["quarantined"].items()))
        yield f"{refused} rows could not be used ({reasons}); `stream-odml quarantine {root}` names each"


def facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the other lines, as names and texts."""
    shards, images = report["shards"], report["images"]
    yield "service", report["service"] or "not running; `stream-odml run CONFIG` starts it"
    names = report["manifests"]
    only = f"; {names} of them only name{'s' if names == 1 else ''} a task" if names else ""
    yield (
        "shards",
        f"{shards['landed']} landed, {shards['indexed']} searchable, {shards['learnt']} learnt{only}",
    )
    if gallery := report.get("gallery"):
        yield "gallery", f"{gallery['items']} items of {gallery['classes']} classes can be found"
    # Counters do not fall when an item is erased, or comes again.
    held_out = f", {images['held_out']} held out" if images["held_out"] else ""
    yield "ever taken in", f"{images['ingested']} rows, {images['learnt']} learnt{held_out}"
    if waiting := report["waits_to_be_indexed"]:
        yield "to be indexed", some(waiting, SHOWN)
    task = report["open_task"]
    if task["shards"]:
        yield (
            "to be closed",
            f"{task['task']}: {task['images']} images of {task['classes']} classes wait for more, for its age, "
            "or for `stream-odml ingest ... --task NAME`",
        )
    if due := report["waits_to_be_learnt"]:
        yield "to be learnt", some([_closed(one) for one in due], SHOWN)
    if not (waiting or task["shards"] or due):
        yield "waiting", "nothing"
    recall = report["recall_at_1"]
    if recall:
        parts = [
            f"{'all' if split == 'union' else split} {figure(recall[f'{split}/served'])}"
            for split in ("union", "old", "new")
            if recall.get(f"{split}/served") is not None
        ]
        of = f", set {report['held_out_set']}" if report["held_out_set"] else ""
        yield "Recall@1", f"{', '.join(parts)} (as served, on held-out images{of})"
    for line in report["held_out_changed"]:
        yield "before", line
    if report["forgetting"] is not None:
        yield "forgetting", figure(report["forgetting"])


def _closed(task: Mapping[str, Any]) -> str:
    name = f" ({task['name']})" if task["name"] else ""
    refused = f", refused {task['refused']} times" if task["refused"] else ""
    return f"{task['task']}{name}: {task['closed']}{refused}"
