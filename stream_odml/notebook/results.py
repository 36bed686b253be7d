"""What a notebook is given: sequences of plain values that show themselves as pictures and tables.

Protects: names that came with the data are text, whatever they hold.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape as escape_markup
from typing import overload

from stream_odml.ingest.fields import written_out
from stream_odml.ingest.kept_images import image_type

SHOWN = 24
"""Items shown of many."""
Picture = Callable[["Item"], bytes | None]
"""A small encoded image of an item, if there is one."""
_STYLES = (
    "display:inline-block;width:112px;margin:4px;vertical-align:top;font:12px sans-serif;overflow:hidden"
)


@dataclass(frozen=True)
class Item:
    """One item of the gallery; of a search, `score` is the cosine to the query."""

    item_id: str
    class_name: str
    shard: str
    version: str
    """The model version that made its vector."""
    time: datetime | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    score: float | None = None


@dataclass(frozen=True, repr=False)
class Items(Sequence[Item]):
    """Items by model `version`, of a search the nearest first. Shows itself as tiles."""

    items: tuple[Item, ...]
    version: str
    picture: Picture = field(default=lambda item: None, compare=False)
    query: bytes | None = field(default=None, compare=False)
    """The image that was asked for."""

    @overload
    def __getitem__(self, at: int) -> Item: ...

    @overload
    def __getitem__(self, at: slice) -> Items: ...

    def __getitem__(self, at: int | slice) -> Item | Items:
        if isinstance(at, slice):
            return Items(self.items[at], self.version, self.picture, self.query)
        return self.items[at]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        lines = [written_out(self._title())]
        for item in self.items[:SHOWN]:
            score = "" if item.score is None else f"{item.score:6.3f}  "
            lines.append(written_out(f"  {score}{item.class_name}  {item.item_id}"))
        return "\n".join([*lines, *(["  ..."] if len(self) > SHOWN else [])])

    def _repr_html_(self) -> str:
        asked = [_tile(self.query, ["the query"], "2px solid #888")] if self.query is not None else []
        found = [self._tile(item) for item in self.items[:SHOWN]]
        return f"<div><b>{escape(self._title())}</b><br>{''.join([*asked, *found])}</div>"

    def _title(self) -> str:
        shown = f", {SHOWN} shown" if len(self) > SHOWN else ""
        return f"{len(self)} items, version {self.version}{shown}"

    def _tile(self, item: Item) -> str:
        score = [] if item.score is None else [f"{item.score:.3f}"]
        return _tile(self.picture(item), [item.class_name, *score, item.item_id], "1px solid #ccc")


@dataclass(frozen=True)
class Version:
    """One committed model version."""

    version: str
    parent: str | None
    task: str | None
    time: datetime | None
    is_head: bool
    metrics: Mapping[str, object] = field(default_factory=dict, repr=False)


class Versions(tuple[Version, ...]):
    """The tree of versions in order of commit. Shows itself as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        names = ("version", "parent", "task", "committed", "recall@1", "forgetting")
        return table(names, (self._cells(version) for version in self))

    @staticmethod
    def _cells(version: Version) -> tuple[str, ...]:
        figures = [version.metrics.get(name) for name in ("recall_at_1/union/served", "forgetting")]
        return (
            version.version + (" (head)" if version.is_head else ""),
            version.parent or "",
            version.task or "",
            f"{version.time:%Y-%m-%d %H:%M}" if version.time else "",
            *(f"{value:.3f}" if isinstance(value, float) else "" for value in figures),
        )


def escape(text: str) -> str:
    """Return text for HTML, with characters that reorder or hide text written out."""
    return escape_markup(written_out(text))


def table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return an HTML table of text."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _tile(image: bytes | None, lines: Sequence[str], border: str) -> str:
    shown = '<div style="width:104px;height:104px;background:#eee"></div>'
    if image is not None:
        data = f"data:{image_type(image)};base64,{base64.b64encode(image).decode('ascii')}"
        shown = f'<img src="{data}" style="width:104px;height:104px;object-fit:contain">'
    text = "<br>".join(escape(line) for line in lines)
    return f'<div style="{_STYLES};border:{border}">{shown}<br>{text}</div>'
