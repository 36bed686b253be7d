"""Folders as people have them, in a few words, and what lands of them."""

from __future__ import annotations

from pathlib import Path

from stream_odml.cli.ingest import land_path
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import RowProblem
from stream_odml.ingest.sources import DirectorySource
from tests.ingest.pictures import picture


def write(folder: Path, *names: str, first: int = 0) -> Path:
    """Write a different image under each name."""
    for number, name in enumerate(names, start=first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, "PNG"))
    return folder


def ingest(path: Path | str, inbox: Path, task: str | None = None, name: str | None = None) -> list[str]:
    """What the command prints."""
    return list(land_path(Path(path), str(inbox), 1000, task, name))


def rows(inbox: Path) -> list[RawItem | RowProblem]:
    """All rows of all shards of an inbox, as the indexer gets them."""
    return [row for ref in DirectorySource(inbox).poll(set()) for row in read_shard(ref)]


def classes(inbox: Path) -> list[str]:
    """Class of each usable row; a row that is none is its reason."""
    return [row.class_name if isinstance(row, RawItem) else str(row.reason) for row in rows(inbox)]
