"""The one atomic write of a local file.

Protects: a name either holds complete bytes or does not exist, also after a crash of the machine where the write is
durable: written aside in the same folder, synced, shown under its name, the folder synced.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

ASIDE = ".aside-"
"""How names of files begin that are being written. Readers and sources skip them."""
_NO_WAY = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM})
Fill = Callable[[IO[bytes]], object]


def write_whole(
    target: Path, fill: Fill, *, durable: bool = True, show: Callable[[Path, Path], object] = os.replace
) -> None:
    """Let `fill` write the file that appears as `target`; `show` gives what is written aside its name.

    Nothing is left aside where `fill` or `show` raises.
    """
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
