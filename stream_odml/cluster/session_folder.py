"""The folder of a local Ray session: private to its user, held while the session lives, removed after it.

Protects: nobody else reads, writes or replaces what a session keeps on disk, whatever the umask; no link is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stream_odml.cluster.haproxy_config import SESSION_VARIABLE
from stream_odml.storage.process import is_alive

PREFIX = "odml-"
SOCKET_PATH_BYTES = 107
_LONGEST_BELOW = len("/odml-4194304-12345678/h//a.4194304.tmp") + 56
"""HAProxy's admin socket while it is made, in a folder that Serve names after the node."""
_PROXY_ENDS_S = 3.0
_COPY_BYTES = 1 << 20


class NoSessionFolder(OSError):
    """No folder for temporary files can hold the sockets of a session."""


class SessionFolder:
    """A new folder of mode 0700, locked as long as this process keeps it."""

    def __init__(self) -> None:
        base = _base()
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=base))
        self._lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Under its name only once it is locked: one that is not is removed by the next session that starts.
        self.path = base / f"{PREFIX}{os.getpid()}-{made.name.removeprefix(f'.{PREFIX}')}"
        made.rename(self.path)

    def close(self) -> None:
        """Remove the folder, and end what still runs out of it."""
        end_proxies(self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def tighten(session: Path) -> None:
    """Take from others what Ray gives them: it opens its folders to every user of the machine."""
    for folder, names, files in os.walk(session):
        for name in [*names, *files]:
            _make_private(Path(folder) / name)


def remove_abandoned() -> None:
    """Remove what sessions that were killed left behind: their folders, a proxy that still holds its port, and a worker
    of Ray that was just starting, which waits for its session for ever."""
    for base in {Path(tempfile.gettempdir()), *_FALLBACKS}:
        for folder in base.glob(f"{PREFIX}*-*"):
            owner = folder.name.removeprefix(PREFIX).split("-", 1)[0]
            if owner.isdigit() and not is_alive(int(owner)) and _is_abandoned(folder):
                end_proxies(folder)
                _kill_members(folder)
                shutil.rmtree(folder, ignore_errors=True)


def _kill_members(folder: Path) -> None:
    """Kill what was started in the session of `folder`, not who only looks at a file in it."""
    mark = f"{SESSION_VARIABLE}={folder}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def _is_abandoned(folder: Path) -> bool:
    """Return whether it is a folder of this user that no process holds, in this container or in another."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(opened).st_uid != os.geteuid():
            return False
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(opened)


def end_proxies(folder: Path) -> None:
    """End the HAProxy processes of the session, known by their configuration in `folder`. They outlive a session that
    ends while Serve is starting, or whose processes were killed, and keep the port."""
    _end(f"{folder}/h/", signal.SIGTERM)


def kill_processes(folder: Path) -> None:
    """Kill what Ray started below `folder` before its start failed: it holds ports and memory otherwise. Its GCS
    lives on until then: a client of it that is left in this process would end the process without it."""
    _end(f"{folder}/", signal.SIGKILL, spared="gcs_server")


def _end(below: str, number: signal.Signals, spared: str = "\0") -> None:
    ended = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(command.parent.name)
        with contextlib.suppress(OSError):
            is_ours = command.parent.stat().st_uid == os.geteuid() and pid != os.getpid()
            words = command.read_bytes()
            if is_ours and below.encode() in words and spared.encode() not in words.split(b"\0", 1)[0]:
                os.kill(pid, number)
                ended.append(command)
    deadline = time.monotonic() + _PROXY_ENDS_S
    while any(_is_running(command) for command in ended) and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_running(command: Path) -> bool:
    """Return whether a process still has a command line: a dead one that nobody waits for has none."""
    try:
        return bool(command.read_bytes())
    except OSError:
        return False


_FALLBACKS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


def _base() -> Path:
    """Return the folder for temporary files, or a usual one where its path leaves no room for a socket's."""
    wanted = Path(tempfile.gettempdir())
    for base in (wanted, *_FALLBACKS):
        if len(os.fsencode(base)) + _LONGEST_BELOW <= SOCKET_PATH_BYTES and _is_usable(base):
            return base
    raise NoSessionFolder(
        f"the folder for temporary files, {wanted}, has too long a path for sockets, and none of "
        f"{', '.join(map(str, _FALLBACKS))} can be used; set TMPDIR to a folder whose path has at most "
        f"{SOCKET_PATH_BYTES - _LONGEST_BELOW} characters, and whose files may be executed"
    )


def _is_usable(base: Path) -> bool:
    """Return whether files can be made in it, and executed: the wrapper of HAProxy is."""
    try:
        with tempfile.NamedTemporaryFile(dir=base) as probe:
            os.fchmod(probe.fileno(), 0o700)
            return os.access(probe.name, os.X_OK)
    except OSError:
        return False


def _make_private(path: Path) -> None:
    with contextlib.suppress(OSError):  # it went meanwhile
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(path, stat.S_IMODE(found.st_mode) & 0o700)


def keep_logs(session: Path, target: Path) -> None:
    """Copy the session's logs below `target`: regular files only, into folders of mode 0700 and files of 0600.
    Nothing that lies at `target` already is followed or written through: a link there is replaced, and `target`
    itself must be no link. Raises OSError."""
    logs = next(iter(session.glob("session_2*/logs")), None)
    if logs is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        target.mkdir(0o700)
    with _folder(logs, None) as source, _folder(target, None) as copy:
        _copy_tree(source, copy)


def _copy_tree(source: int, copy: int) -> None:
    os.fchmod(copy, 0o700)
    for name in os.listdir(source):
        mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
        if stat.S_ISREG(mode):
            _copy_file(name, source, copy)
        elif stat.S_ISDIR(mode):
            if not _is_folder(name, copy):
                _unlink(name, copy)
                os.mkdir(name, 0o700, dir_fd=copy)
            with _folder(name, source) as inner, _folder(name, copy) as inner_copy:
                _copy_tree(inner, inner_copy)


def _copy_file(name: str, source: int, copy: int) -> None:
    _unlink(name, copy)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
    with os.fdopen(opened, "rb") as data, os.fdopen(os.open(name, flags, 0o600, dir_fd=copy), "wb") as out:
        shutil.copyfileobj(data, out, _COPY_BYTES)


def _is_folder(name: str, within: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISDIR(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode)
    return False


def _unlink(name: str, within: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=within)


@contextlib.contextmanager
def _folder(path: Path | str, within: int | None) -> Iterator[int]:
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=within)
    try:
        yield opened
    finally:
        os.close(opened)
