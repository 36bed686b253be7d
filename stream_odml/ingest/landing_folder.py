"""Land a folder of class folders as one shard: files first, `_manifest.json` last.

Invariant: a folder is a shard only once its manifest is there, and the manifest carries the hash of every
file. A folder that has grown lands as its new part: the images whose bytes have not landed from it before.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.fs as pafs

from stream_odml.ingest.folder_scan import class_of, scan_folder
from stream_odml.ingest.passed_over import is_foreign_folder
from stream_odml.ingest.reasons import BadShard
from stream_odml.ingest.shard import (
    FILE_FORMATS,
    MANIFEST_NAME,
    TASK_SUFFIX,
    ManifestFile,
    ShardManifest,
    format_of,
    make_shard_id,
    shard_name,
)
from stream_odml.ingest.shard_file import read_manifest
from stream_odml.storage.atomic import ASIDE, sync_folder, write_whole
from stream_odml.storage.publish import ShardExists, check_name, claim_name, taken
from stream_odml.storage.reading import (
    StorageOptions,
    filesystem_of,
    is_remote,
    join,
    local_path,
    s3_filesystem,
    s3_path,
)
from stream_odml.storage.regular import open_regular

_PART_CHARS = 8
_UNKNOWN = "\0"


@dataclass(frozen=True)
class FolderPlan:
    """What would land of a folder, found without writing a byte.

    `name` and `manifest` are those of the shard to land, both None where all of it has landed before;
    `before` are the shards that hold the rest. `notes` say what is passed over, a line for each kind.
    """

    source: Path
    name: str | None
    manifest: ShardManifest | None
    before: tuple[str, ...]
    notes: tuple[str, ...]


def plan_folder(
    inbox: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    name: str | None = None,
    options: StorageOptions | None = None,
) -> FolderPlan:
    """Find what of `folder` (class folders of images; also tables and tars) has not landed from it before, by the bytes
    of its files. `name` is by default made from the folder's own. Raises ShardExists, ValueError for nothing to land.
    """
    source, place = _named(folder), os.fspath(inbox)
    base = _check_folder_name(shard_name(source.name) if name is None else name)
    scan = scan_folder(source, None if is_remote(place) else local_path(place))
    landed = _landed(place, base, options)
    new, moves = _new_files(scan.files, landed.values())
    here = {file.sha256 for file in scan.files}
    before = tuple(
        sorted(n for n, (manifest, _) in landed.items() if here & {file.sha256 for file in manifest.files})
    )
    if not new:
        return FolderPlan(source, None, None, before, scan.notes)
    manifest = ShardManifest(files=new)
    if not before and base not in landed:
        if not is_remote(place):
            _is_landed(local_path(place) / base, manifest)
        return FolderPlan(source, base, manifest, (), scan.notes)
    # An image may move to and fro, so equal parts may follow different ones.
    part = hashlib.sha256(manifest.to_bytes() + "".join(before).encode() * bool(moves)).hexdigest()
    note = f"{len(scan.files) - len(new)} of {len(scan.files)} files landed before; {len(new)} new to land"
    name = check_name(f"{base}-{part[:_PART_CHARS]}")
    return FolderPlan(source, name, manifest, before, (note, *moves, *scan.notes))


def land_plan(
    inbox: str | os.PathLike[str], plan: FolderPlan, options: StorageOptions | None = None
) -> str | None:
    """Land what a plan found; None where it found nothing new. Raises ShardExists, OSError."""
    if plan.name is None or plan.manifest is None:
        return None
    place = os.fspath(inbox)
    if is_remote(place):
        _upload(plan.source, place, plan.name, plan.manifest, options)
    else:
        _copy(plan.source, local_path(place), plan.name, plan.manifest)
    return join(place, plan.name)


def whole_shard_id(folder: Path, files: tuple[ManifestFile, ...], name: str | None = None) -> str:
    """Return the id of the shard that these files, all of a folder, are once they land in an inbox that has none."""
    base = shard_name(_named(folder).name) if name is None else name
    return make_shard_id(base, hashlib.sha256(ShardManifest(files=files).to_bytes()).hexdigest())


def _named(folder: str | os.PathLike[str]) -> Path:
    """Return the folder with a name, also for `.` and `..`. Raises ValueError for none, and for the root of all."""
    source = Path(os.path.abspath(folder))
    if not source.is_dir():
        raise ValueError(f"{folder} is no folder; name a folder of class folders")
    if not source.name:
        raise ValueError(
            f"{folder} is the root of the file system; name the folder of class folders below it"
        )
    return source


def _check_folder_name(name: str) -> str:
    if name.endswith(TASK_SUFFIX):
        raise ValueError(f"shard name {name!r} is that of a task's manifest; choose another name")
    if is_foreign_folder(name):
        raise ValueError(
            f"shard name {name!r} is one that systems use, so it is never read; choose another name"
        )
    return check_name(name)


def _new_files(
    files: Sequence[ManifestFile], landed: Iterable[tuple[ShardManifest, str]]
) -> tuple[tuple[ManifestFile, ...], list[str]]:
    """Return the files whose bytes have not landed in their class before, and a note if they were in another one. Such
    a file gets the id of the item that it was, unless that is still there too: the later one counts."""
    items: dict[str, tuple[str, str]] = {}
    for manifest, shard_id in landed:
        items |= _items_of(manifest, shard_id)
    here = {(file.sha256, class_of(file)) for file in files}
    gone = {sha256: item_id for item_id, (sha256, label) in items.items() if (sha256, label) not in here}
    known, new, moved, doubled = set(items.values()), [], 0, 0
    for file in files:
        if (file.sha256, class_of(file)) in known:
            continue
        item_id = gone.pop(file.sha256, None)
        if item_id is not None and item_id.startswith(_UNKNOWN):
            doubled += 1
        elif item_id is not None:
            moved += 1
            file = replace(file, values=tuple(sorted(({"item_id": item_id} | dict(file.values)).items())))
        new.append(file)
    notes = []
    if moved:
        notes.append(f"{moved} of them in another class than before: they take the place of the earlier ones")
    if doubled:
        notes.append(
            f"{doubled} of them in another class than before, where they stay too: forget those items"
        )
    return tuple(new), notes


def _items_of(manifest: ShardManifest, shard_id: str) -> dict[str, tuple[str, str]]:
    """Return hash and class of each file by the id of its item; what is or follows a table has ids unknown here."""
    items: dict[str, tuple[str, str]] = {}
    follows_table = False
    for row, file in enumerate(manifest.files):
        follows_table = follows_table or format_of(file.path) in FILE_FORMATS.values()
        default = f"{_UNKNOWN}{file.path}" if follows_table else f"{shard_id}/{row}"
        items[dict(file.values).get("item_id", default)] = (file.sha256, class_of(file))
    return items


def _landed(inbox: str, base: str, options: StorageOptions | None) -> dict[str, tuple[ShardManifest, str]]:
    """Return the shards that landed from the folder of this name, with their ids: the first, then its parts."""
    ours = re.compile(rf"{re.escape(base)}(-[0-9a-f]{{{_PART_CHARS}}})?")
    landed: list[tuple[int, str, ShardManifest, str]] = []
    for name in filter(ours.fullmatch, _folders(inbox, options)):
        try:
            manifest, sha256 = read_manifest(join(inbox, name), options)
        except BadShard:
            continue  # without its manifest it is no shard, or one that readers refuse
        filesystem, path = filesystem_of(join(inbox, f"{name}/{MANIFEST_NAME}"), options)
        landed_at = int(filesystem.get_file_info(path).mtime_ns or 0)
        landed.append((landed_at, name, manifest, make_shard_id(name, sha256)))
    landed.sort(key=lambda one: one[:2])
    return {name: (manifest, shard_id) for _, name, manifest, shard_id in landed}


def _folders(inbox: str, options: StorageOptions | None) -> Iterator[str]:
    if is_remote(inbox):
        filesystem = s3_filesystem(options)
        listed = filesystem.get_file_info(pafs.FileSelector(s3_path(inbox), allow_not_found=True))
        yield from (info.base_name for info in listed if info.type == pafs.FileType.Directory)
    elif local_path(inbox).exists():
        with os.scandir(local_path(inbox)) as entries:
            yield from (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _copy(source: Path, inbox: Path, name: str, manifest: ShardManifest) -> None:
    final, aside = inbox / name, inbox / f"{ASIDE}{secrets.token_hex(16)}"
    if _is_landed(final, manifest):
        return
    try:
        for file in manifest.files:
            target = aside / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_regular(source / file.path, follow=False) as data, open(target, "xb") as out:
                shutil.copyfileobj(data, out, 8 << 20)
                out.flush()
                os.fsync(out.fileno())
        write_whole(aside / MANIFEST_NAME, lambda file: file.write(manifest.to_bytes()))
        try:
            os.rename(aside, final)
        except OSError:
            if not _is_landed(final, manifest):  # who landed it meanwhile may have landed the same
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(inbox)


def _is_landed(final: Path, manifest: ShardManifest) -> bool:
    """Return whether this very shard is there. Raises ShardExists where anything else has its name."""
    if not os.path.lexists(final):
        return False
    try:
        there = (final / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ShardExists(
            f"{final} exists and is no complete shard; remove it, or choose another name"
        ) from None
    if there != manifest.to_bytes():
        raise taken(final)
    return True


def _upload(
    source: Path, inbox: str, name: str, manifest: ShardManifest, options: StorageOptions | None
) -> None:
    filesystem, key = s3_filesystem(options), s3_path(join(inbox, name))
    data, final = manifest.to_bytes(), join(key, MANIFEST_NAME)
    if claim_name(inbox, name, hashlib.sha256(data).hexdigest(), final, options):
        return
    for file in manifest.files:
        with (
            open_regular(source / file.path, follow=False) as content,
            filesystem.open_output_stream(join(key, file.path)) as out,
        ):
            shutil.copyfileobj(content, out, 8 << 20)
    with filesystem.open_output_stream(final) as out:
        out.write(data)
