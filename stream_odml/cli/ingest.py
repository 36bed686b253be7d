"""Landing what a user has as shards of a stream's inbox: the command `ingest`.

Protects: every argument is checked, and every file read into, before the first byte lands; and a task is
completed before its shards land, so that no boundary closes some of them earlier. Names that the inbox has already
come first of all: a task never takes somebody else's shards of the same names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stream_odml.ingest.landing import (
    check_file_name,
    check_task,
    complete_task,
    land_file,
    land_parquet,
    parquet_names,
)
from stream_odml.ingest.landing_folder import FolderPlan, land_plan, plan_folder
from stream_odml.ingest.reading import check_rows
from stream_odml.ingest.shard import format_of, shard_name
from stream_odml.storage.publish import exists
from stream_odml.storage.reading import is_remote, local_path
from stream_odml.storage.regular import checked_path
from stream_odml.store.store import Store
from stream_odml.wording import some


@dataclass(frozen=True)
class _Plan:
    """The shards that a path becomes, by name, and how the folder among them lands."""

    names: tuple[str, ...]
    folder: FolderPlan | None = None


def land_path(
    path: Path, inbox: str, rows_per_shard: int, task: str | None, name: str | None = None
) -> Iterator[str]:
    """Land a folder of class folders, a Parquet file (cut into shards), an Arrow file or a tar; yields a line for each
    thing that was done or passed over. With `task` a manifest says first that these shards are a complete task. Raises
    ValueError for a path without images and for names that cannot be."""
    if task is not None:
        check_task(task)
    if not is_remote(inbox):
        checked_path("inbox", inbox)
        if local_path(inbox).exists() and not local_path(inbox).is_dir():
            raise ValueError(f"the inbox {inbox} is a file; name a folder or s3://bucket/prefix")
    if _is_root(inbox):
        raise ValueError(
            f"{inbox} is a stream root, where nobody looks for shards; name its inbox, {inbox.rstrip('/')}/inbox "
            "unless its configuration says another one"
        )
    plan = _plan(path, inbox, rows_per_shard, name)
    yield from plan.folder.notes if plan.folder else ()
    there = {one for one in plan.names if plan.folder is None and exists(inbox, one)}
    yield from _land(path, inbox, rows_per_shard, plan, there)
    if task is not None:
        yield from _taken(inbox, task, plan.names)
        yield f"landed {complete_task(inbox, task, plan.names)}"
    yield from _land(path, inbox, rows_per_shard, plan, {*plan.names} - there)
    if plan.folder is not None and plan.folder.name is None:
        yield f"nothing new in {path}: all of it landed before, as {', '.join(plan.folder.before)}"


def _is_root(place: str) -> bool:
    if not is_remote(place):
        return (local_path(place) / "ledger" / "_delta_log").is_dir()
    with contextlib.suppress(Exception):  # of a store that is away landing itself will tell
        return bool(Store.id_of(place))
    return False


def _plan(path: Path, inbox: str, rows_per_shard: int, name: str | None) -> _Plan:
    if path.is_dir():
        folder = plan_folder(inbox, path, name)
        return _Plan((*folder.before, *([folder.name] if folder.name else [])), folder)
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a folder of class folders, a Parquet file or a tar")
    if not path.is_file():
        raise ValueError(f"{path} is a pipe, a socket or a device; name a file or a folder of class folders")
    final = check_file_name(_file_name(path, name))
    check_rows(path.resolve(), format_of(final))
    if format_of(final) == "parquet":
        return _Plan(tuple(parquet_names(path, rows_per_shard, Path(final).stem)))
    return _Plan((final,))


def _file_name(path: Path, name: str | None) -> str:
    stem, suffix = shard_name(path.stem) if name is None else name, path.suffix.lower()
    return stem if stem.lower().endswith(suffix) and name is not None else f"{stem}{suffix}"


def _land(path: Path, inbox: str, rows_per_shard: int, plan: _Plan, only: Collection[str]) -> Iterator[str]:
    """Land those of the planned shards; a line for each."""
    uris: Iterable[str | None] = ()
    if plan.folder is not None:
        uris = (land_plan(inbox, plan.folder),) if only else ()
    elif format_of(plan.names[0]) == "parquet":
        stem = plan.names[0].rpartition("-")[0]
        uris = land_parquet(inbox, path, rows_per_shard, name=stem, only=only) if only else ()
    elif only:
        uris = (land_file(inbox, path, plan.names[0], checked=True),)
    yield from (f"landed {uri}" for uri in uris if uri is not None)


def _taken(inbox: str, task: str, names: tuple[str, ...]) -> Iterator[str]:
    """Say which shards an earlier task has, where the inbox lies in a stream root of this machine."""
    root = "" if is_remote(inbox) else str(local_path(inbox).parent)
    if not root or not _is_root(root):
        return
    shards = Store.open(root, keep_gallery=False).ledger.shards.values()
    taken = {shard.name: shard.task for shard in shards if shard.task is not None and shard.name in names}
    if taken:
        shown = some([f"{name} is in {of}" for name, of in taken.items()])
        rest = (
            f"it gets the other {len(names) - len(taken)}" if len(taken) < len(names) else "it closes nothing"
        )
        yield f"task {task}: {len(taken)} of its {len(names)} shards are learnt with an earlier task ({shown}); {rest}"
