"""Local files below a folder that somebody else may have filled: only regular files, and only inside it.

Protects: no name and no link from a table, a manifest or a listing reaches a file outside its folder, and no FIFO,
socket or device blocks the process that opens it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
from pathlib import Path, PurePosixPath

NOT_IN_A_ROOT = "[]|^%\\"
"""Characters that the Delta library cannot take in a local path: it ends in a Rust panic, or writes elsewhere."""


class UnsafePath(ValueError):
    """A path that leaves its folder, or names something other than a regular file."""


def is_safe_path(path: str) -> bool:
    """Return whether a relative path stays inside its folder: no root, no drive, no "..", no NUL."""
    if not path or "\0" in path or "\\" in path or path.startswith("/") or re.match(r"^[A-Za-z]:", path):
        return False
    return ".." not in PurePosixPath(path).parts


def inside(root: str | os.PathLike[str], path: str) -> Path:
    """Return the place of the relative `path` below `root`. Raises UnsafePath when its name or a link leads out."""
    if not is_safe_path(path):
        raise UnsafePath(f"{path[:200]!r} is no relative path below {os.fspath(root)}; it is not followed")
    full, top = Path(root) / path, os.path.realpath(root)
    if os.path.commonpath((top, os.path.realpath(full))) != top:
        raise UnsafePath(
            f"{full} is a link that leads out of {os.fspath(root)}; remove it, or put its file there"
        )
    return full


def place_below(root: str | os.PathLike[str], path: str) -> Path:
    """Return where to write or delete the relative `path`: a link of that name goes itself, no folder leads out."""
    folder, name = os.path.split(path)
    if not is_safe_path(path) or not name:
        raise UnsafePath(
            f"{path[:200]!r} is no relative path below {os.fspath(root)}; nothing is written there"
        )
    return inside(root, folder or ".") / name


def open_regular(path: str | os.PathLike[str], follow: bool = True) -> io.FileIO:
    """Open a regular file to read, unbuffered, without ever blocking. Raises UnsafePath for a FIFO, socket or device,
    and without `follow` for a link. Raises IsADirectoryError for a folder."""
    _check_regular(os.fspath(path), os.stat(path, follow_symlinks=follow).st_mode)
    only = 0 if follow else os.O_NOFOLLOW
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | only)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise UnsafePath(f"{os.fspath(path)} became a link; it is not followed") from error
        raise
    try:
        _check_regular(os.fspath(path), os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:  # an interrupt too would leave it open: no object closes it yet
        os.close(descriptor)
        raise


def hash_regular(path: Path) -> tuple[int, str]:
    """Return the size in bytes and the sha256 of a regular file that is no link. Errors as `open_regular`."""
    with open_regular(path, follow=False) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def read_regular(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file that is no link. Raises ValueError for more than `limit`."""
    with open_regular(path, follow=False) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ValueError(f"{path} has more than {limit} bytes")
        return file.read(limit)


def refuse_links(folder: Path) -> None:
    """Raise UnsafePath when `folder`, or anything below it, is a link or no regular file: others would follow it."""
    if folder.is_symlink():
        raise UnsafePath(f"{folder} is a link; a stream root holds its files itself: put the folder there")
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            full = Path(place) / name
            try:
                mode = full.lstat().st_mode
            except FileNotFoundError:
                continue  # deleted meanwhile
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise UnsafePath(f"{full} is {kind_of(mode)}, and no file of a stream root; remove it")


def checked_path(what: str, path: str) -> str:
    """Return a local path as it is. Raises ValueError for none, which would be the working folder, for a home or a
    variable of a shell, which nobody expands, and for characters that no path has."""
    if not path.strip():
        raise ValueError(
            f"the {what} has no name, which would be the working folder; name one, or write a dot"
        )
    if path.startswith(("~", "$")) or "${" in path:
        raise ValueError(
            f"the {what} {path!r} has {path[0] if path[0] == '~' else '$'!r}, which only a shell expands; "
            "write the path out"
        )
    try:
        is_path = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise ValueError(f"the {what} {path!a} holds a character that no path has; correct it")
    return path


def machine_path(what: str, path: str) -> str:
    """Return the path of a file or folder of this machine, without `file://`. Raises ValueError as `checked_path` does,
    and for an address, which would be a folder of that name in the working folder. A folder cannot have such a name."""
    text = checked_path(what, path.removeprefix("file://") if path.startswith("file:///") else path)
    if "://" in text:
        raise ValueError(
            f"the {what} has '://' in it, as an address has; this takes a place on this machine: name one, or a copy "
            "here"
        )
    return text


def check_root(uri: str | os.PathLike[str]) -> str:
    """Return a local stream root's absolute path. Raises ValueError, in one line, for a path that cannot hold one."""
    text = os.fspath(uri).removeprefix("file://")
    checked_path("stream root", text)
    path = str(Path(text).absolute())
    wrong = sorted({c for c in path if c in NOT_IN_A_ROOT or not c.isprintable()})
    if wrong:
        seen = " ".join(map(ascii, wrong))
        raise ValueError(
            f"the stream root {path!r} has {seen} in its path, which Delta tables cannot; rename it"
        )
    return path


def _check_regular(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder, expected a file")
    if not stat.S_ISREG(mode):
        raise UnsafePath(f"{path} is {kind_of(mode)}, expected a regular file; remove it")


def kind_of(mode: int) -> str:
    """Return what a file is that is not a regular one, by its mode."""
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
