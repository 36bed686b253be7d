"""Land a folder of class folders as one shard: files first, `_manifest.json` last.

Invariant: a folder is a shard only once its manifest is there, and the manifest carries the hash of every
file.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from stream_odml.stream.publish import ShardExists, check_name, file_sha256, sync_folder
from stream_odml.stream.shard import FILE_FORMATS, IMAGE_SUFFIXES, MANIFEST_NAME, ManifestFile, ShardManifest
from stream_odml.stream.storage import StorageOptions, is_remote, join, local_path, s3_filesystem, s3_path


def land_folder(
    inbox: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    name: str | None = None,
    task: str | None = None,
    task_complete: bool = False,
    options: StorageOptions | None = None,
) -> str:
    """Copy `folder` (class folders of images; also tables and tars) into the inbox as one shard. Returns its
    URI.

    `task_complete` says that with this shard `task` is whole. Raises ShardExists, ValueError when it
    holds no file.
    """
    source, place = Path(folder), os.fspath(inbox)
    final = check_name(name or source.name)
    manifest = describe_folder(source, task, task_complete)
    if is_remote(place):
        _upload(source, join(place, final), manifest, options)
    else:
        _copy(source, local_path(place), final, manifest)
    return join(place, final)


def seal_folder(folder: str | os.PathLike[str], task: str | None = None, task_complete: bool = False) -> Path:
    """Make a folder that already lies in the inbox a shard, by writing its manifest. Returns the manifest's
    path.
    """
    root = Path(folder)
    return _write_manifest(root, describe_folder(root, task, task_complete))


def describe_folder(folder: Path, task: str | None = None, task_complete: bool = False) -> ShardManifest:
    """The manifest of a folder: images, tables and tars below it, sorted by path, each with size and hash."""
    wanted = IMAGE_SUFFIXES | set(FILE_FORMATS)
    paths = sorted(path for path in _walk(folder) if path.suffix.lower() in wanted)
    if not paths:
        raise ValueError(f"{folder} holds no image, table or tar; expected class folders of images")
    files = tuple(
        ManifestFile(path.relative_to(folder).as_posix(), path.stat().st_size, file_sha256(path))
        for path in paths
    )
    return ShardManifest(task, task_complete, files=files)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _write_manifest(root: Path, manifest: ShardManifest) -> Path:
    final, aside = root / MANIFEST_NAME, root / f".{MANIFEST_NAME}.{secrets.token_hex(4)}"
    with open(aside, "xb") as file:
        file.write(manifest.to_bytes())
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, final)
    sync_folder(root)
    return final


def _copy(source: Path, inbox: Path, name: str, manifest: ShardManifest) -> None:
    final, aside = inbox / name, inbox / f".{name}.{secrets.token_hex(4)}"
    if (final / MANIFEST_NAME).exists():
        if (final / MANIFEST_NAME).read_bytes() == manifest.to_bytes():
            return
        raise ShardExists(f"{final} exists with other content; a shard is immutable: choose another name")
    try:
        for file in manifest.files:
            target = aside / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file.path, target)
            _sync_file(target)
        _write_manifest(aside, manifest)
        os.rename(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(inbox)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _upload(source: Path, uri: str, manifest: ShardManifest, options: StorageOptions | None) -> None:
    filesystem, key = s3_filesystem(options), s3_path(uri)
    for file in manifest.files:
        with (
            open(source / file.path, "rb") as data,
            filesystem.open_output_stream(join(key, file.path)) as out,
        ):
            shutil.copyfileobj(data, out, 8 << 20)
    with filesystem.open_output_stream(join(key, MANIFEST_NAME)) as out:
        out.write(manifest.to_bytes())
