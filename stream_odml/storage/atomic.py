"""The one atomic write of a local file.

Protects: a name either holds complete bytes or does not exist, also after a crash of the machine where the write is
durable: written aside in the same folder, synced, shown under its name, the folder synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from stream_odml.storage.regular import checked_path

ASIDE = ".aside-"
"""How names of files and folders begin that are being written. Readers and sources skip them."""
STRAY_S = 3600.0
"""Age at which what is still being written is taken for what a killed process left."""
_NO_WAY = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM})
Fill = Callable[[IO[bytes]], object]


def write_whole(
    target: Path, fill: Fill, *, durable: bool = True, show: Callable[[Path, Path], object] = os.replace
) -> None:
    """Let `fill` write the file that appears as `target`; `show` gives what is written aside its name. Nothing is left
    aside where `fill` or `show` raises."""
    aside = target.parent / f"{ASIDE}{uuid.uuid4().hex}"
    try:
        with aside.open("xb") as file:
            fill(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        show(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


def write_named(path: Path, fill: Fill) -> None:
    """Let `fill` write a file that a person has named: what was there stays until all of the new one is. A pipe or a
    device is written to as it is, and what a link leads to goes on to have its name and mode. Raises ValueError."""
    checked_path("file", str(path))
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                fill(file)
        else:
            write_whole(path.resolve(), fill, show=_show_alike)
    except OSError as error:
        error.filename = str(path)  # not that of the one aside
        raise


def _show_alike(aside: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copymode(target, aside)
    os.replace(aside, target)


def drop_strays(folder: Path) -> int:
    """Delete what processes that were killed left half-written in a folder, and return how many files or folders."""
    before, dropped = time.time() - STRAY_S, 0
    for path in folder.glob(f"{ASIDE}*"):
        if max(_changes(path), default=before) >= before:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        dropped += 1
    return dropped


def _changes(path: Path) -> Iterator[float]:
    """Yield when a file, or a folder and all that is in it, was changed last; nothing of what is gone meanwhile."""
    for folder, _, names in os.walk(path):
        for one in (folder, *(os.path.join(folder, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):
                yield os.lstat(one).st_mtime
    with contextlib.suppress(FileNotFoundError):  # a file, which `walk` passes over
        yield path.lstat().st_mtime


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError, but not where a file system knows no way to."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_WAY:
            raise
