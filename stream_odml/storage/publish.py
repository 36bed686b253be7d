"""The one way bytes become visible in an inbox: whole, durable, and never over something else.

Locally: written aside under a dot name in the same folder, fsynced, hard-linked to its name (which fails
if the name is taken), folder fsynced. On an object store: spooled to a temporary file, its name claimed for
its content (`claims.py`), then one upload, visible when it ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow.fs as pafs

from stream_odml.storage.atomic import write_whole
from stream_odml.storage.claims import NameClaimed, claim
from stream_odml.storage.reading import StorageOptions, is_remote, join, local_path, s3_filesystem, s3_path

MAX_NAME_CHARS = 150
Write = Callable[[IO[bytes]], object]


class ShardExists(ValueError):
    """The name is taken by other bytes. A shard is immutable: land under another name."""


def taken(place: object) -> ShardExists:
    """Return the error for a place where other bytes lie."""
    return ShardExists(f"{place} exists with other content; a shard is immutable: choose another name")


def check_name(name: str) -> str:
    """Return a name that sources see and every file system takes. Raises ValueError."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}", name):
        raise ValueError(
            f"shard name {name!r:.80}: expected 1-{MAX_NAME_CHARS} letters, digits, '.', '_', '-', "
            "first a letter or digit"
        )
    return name


def publish(
    inbox: str | os.PathLike[str], name: str, write: Write, options: StorageOptions | None = None
) -> str:
    """Let `write` fill a file and show it as `name`. Returns its URI. Raises ShardExists, ValueError, OSError."""
    inbox = os.fspath(inbox)
    check_name(name)
    if is_remote(inbox):
        return _publish_remote(inbox, name, write, options)
    folder = local_path(inbox)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / name, write, show=_show)
    return str(folder / name)


def exists(inbox: str | os.PathLike[str], name: str) -> bool:
    """Return whether something lies in the inbox under this name."""
    inbox = os.fspath(inbox)
    if not is_remote(inbox):
        return os.path.lexists(local_path(inbox) / name)
    found = s3_filesystem(None).get_file_info(join(s3_path(inbox), name))
    return bool(found.type != pafs.FileType.NotFound)


def _show(aside: Path, final: Path) -> None:
    try:
        os.link(aside, final)
    except OSError as error:
        if not isinstance(error, FileExistsError) and not final.exists():
            os.rename(aside, final)  # a file system without hard links
        elif file_sha256(aside) != file_sha256(final):
            raise taken(final) from None


def _publish_remote(inbox: str, name: str, write: Write, options: StorageOptions | None) -> str:
    filesystem, key = s3_filesystem(options), join(s3_path(inbox), name)
    with tempfile.TemporaryFile() as spool:
        write(spool)
        size = spool.tell()
        spool.seek(0)
        sha256 = hashlib.file_digest(spool, "sha256").hexdigest()
        if not claim_name(inbox, name, sha256, key, options):
            spool.seek(0)
            with filesystem.open_output_stream(key) as out:
                shutil.copyfileobj(spool, out, max(1, min(size, 8 << 20)))
    return join(inbox, name)


def claim_name(inbox: str, name: str, sha256: str, key: str, options: StorageOptions | None) -> bool:
    """Claim a name in an object store for content of this hash, which the object `key` is to have. Returns whether that
    object is there already. Raises ShardExists where the name is another content's."""
    filesystem = s3_filesystem(options)
    # First what lies there, claimed or not: other tools copy files into an inbox too.
    if filesystem.get_file_info(key).type == pafs.FileType.File:
        with filesystem.open_input_stream(key) as there:
            if hashlib.file_digest(there, "sha256").hexdigest() != sha256:
                raise taken(join(inbox, name))
        return True
    try:
        claim(inbox, name, sha256, options)
    except NameClaimed as error:
        raise taken(join(inbox, name)) from error
    return False


def file_sha256(path: Path) -> str:
    """Return sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
