"""Short ways to say what the tests of this room say often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stream_odml.ingest.folder_scan import scan_folder
from stream_odml.ingest.landing import NewItem
from stream_odml.ingest.landing_folder import land_plan, plan_folder
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import RowProblem
from stream_odml.ingest.shard import MANIFEST_NAME, ShardManifest, ShardRef, shard_name
from stream_odml.ingest.sources import DirectorySource
from tests.ingest.pictures import picture


def only(inbox: Path) -> ShardRef:
    """The one shard of an inbox."""
    (ref,) = DirectorySource(inbox).poll(set())
    return ref


def seal(folder: Path, task: str | None = None) -> None:
    """Make a folder that lies in the inbox a shard, as a producer of its own does: by its manifest."""
    manifest = ShardManifest(task, files=scan_folder(folder).files)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())


def land_folder(
    inbox: str | Path,
    folder: str | Path,
    name: str | None = None,
    task: str | None = None,
    task_complete: bool = False,
    options: dict[str, str] | None = None,
) -> str:
    """Land all of a folder as one shard under its own name, as part of a task where one is named."""
    plan = plan_folder(inbox, folder, name, options)
    whole = ShardManifest(task, task_complete, files=scan_folder(plan.source).files)
    own = shard_name(plan.source.name) if name is None else name
    return land_plan(inbox, replace(plan, name=own, manifest=whole), options) or ""


def read(ref: ShardRef) -> tuple[list[RawItem], list[RowProblem]]:
    """Usable items and problems of a shard."""
    found = list(read_shard(ref))
    items = [row for row in found if isinstance(row, RawItem)]
    return items, [row for row in found if isinstance(row, RowProblem)]


def some_items(count: int, classes: int = 3, first: int = 0) -> list[NewItem]:
    """Items of a few classes, each image different."""
    return [NewItem(picture(first + n), f"class {n % classes}", f"item-{first + n}") for n in range(count)]
