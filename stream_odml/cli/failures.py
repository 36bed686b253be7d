"""How a failure reaches a person: as one message. Its trace is for who asks for it with `--debug`."""

from __future__ import annotations

import errno
import os
import re
import shlex
import threading
from collections.abc import Callable
from typing import Any

from stream_odml.ingest.reasons import BadShard, RowError
from stream_odml.observe.logs import TextFormatter
from stream_odml.storage.atomic import ASIDE
from stream_odml.storage.refusals import is_of_store, store_words
from stream_odml.wording import TREE, flat

_TRACE = "Traceback (most recent call last)"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = ", and run the same command again"
_FREE_SOME = f"free some{_AGAIN}"
_MAY_NOT = f"run it as the user who may, or give this user the permission (ls -ld shows who may){_AGAIN}"
REMEDIES = {
    errno.EACCES: _MAY_NOT,
    errno.EPERM: _MAY_NOT,
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of this path is a file; name another path, or move that file away",
    errno.EISDIR: "name a file",
    errno.EEXIST: "it is there already; name another, or move it away",
    errno.ENOTEMPTY: "the folder is not empty; name another, or empty it",
    errno.EROFS: "name a place that may be written, or mount the file system for writing",
    errno.EMFILE: f"raise the limit of the shell, for example by ulimit -n 65536{_AGAIN}",
    errno.ENFILE: f"this machine has too many files open; end processes that hold them{_AGAIN}",
    errno.ENAMETOOLONG: "choose a shorter name (most file systems take 255 bytes)",
    errno.ELOOP: "links lead in a circle; name the place itself",
    errno.EXDEV: "both names must lie on one file system; choose another place",
    errno.EFBIG: "the file system takes no file as large; choose another place",
    errno.ETXTBSY: f"a program runs from this file; end it{_AGAIN}",
    errno.EBUSY: f"something else uses it; end that{_AGAIN}",
    errno.EIO: f"the disk or its connection failed; look at the machine's log (dmesg){_AGAIN}",
    errno.ESTALE: f"the network file system lost it; mount it again{_AGAIN}",
    errno.EADDRINUSE: "another process listens there; end it, or choose another port",
    errno.ECONNREFUSED: "nothing listens there; check the address, and start what should answer",
    errno.ETIMEDOUT: f"nothing answered in time; check the address and the network{_AGAIN}",
    errno.ENOMEM: f"the machine has no memory left; free some{_AGAIN}",
}
"""What to do about an error of the operating system, which says itself no more than what was not possible."""
_OF_ARROW = re.compile(r"\. Detail: \[errno \d+\]")
_OF_RUST = re.compile(r"\(os error (\d+)\)")
_OF_DELTA = re.compile(r'\s*Error: Os \{ code: (\d+), kind: \w+, message: "([^"]*)" \}')
_ASK = "run `stream-odml --debug ...` to see the trace"


def message_of(error: BaseException) -> str:
    """Return what went wrong: the error's own words, and its kind where it is none that we raise with a remedy."""
    # Here, as whoever only asks for help need not load it.
    from stream_odml.client import ClientError, ServiceError

    # Ray's own errors hold a whole trace as text, and what it is about here.
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and cause is not error:
        return message_of(cause)
    if isinstance(error, ServiceError):
        # Status and code are for programs; whoever typed a command wants to know what to do.
        return f"{error.detail}; {error.remedy}" if error.remedy else error.detail or str(error)
    # The reason is for counting and for programs, as a status is.
    text = (error.detail if isinstance(error, BadShard | RowError) else str(error)).strip()
    if _TRACE in text:
        text = text.splitlines()[-1].strip()
    if is_of_store(text):
        return store_words(text)
    if TREE in text:
        text = flat(text)
    if isinstance(error, OSError) and text.startswith("[Errno ") and error.strerror:
        return _of_system(error)
    text = _OF_DELTA.sub(r": \2 (os error \1)", text)
    if found := _OF_RUST.search(text):  # as libraries written in Rust say it
        return f"{text}; {_remedy(int(found[1]))}"
    if text and isinstance(error, ValueError | OSError | RuntimeError | ClientError):
        return text
    return f"{type(error).__name__}{f': {text}' if text else ''}; {_ASK}"


def _of_system(error: OSError) -> str:
    """Return what was not possible, on which path, and what to do about it."""
    names = [_place(name) for name in (error.filename, error.filename2) if name]
    said = _OF_ARROW.sub(":", error.strerror or "") + (f" at {' and '.join(names)}" if names else "")
    folder = os.path.dirname(names[0]) if names else ""
    if error.errno == errno.ENOENT and folder and not os.path.lexists(folder):
        return f"{said}; its folder is not there: make it (mkdir -p {shlex.quote(folder)}), or name another"
    return f"{said}; {_remedy(error.errno)}"


def _remedy(number: int | None) -> str:
    return _FREE_SOME if number in _FULL else REMEDIES.get(number or 0, _ASK)


def _place(name: object) -> str:
    """Return a path as whoever typed the command knows it: of a file that is being written, its folder."""
    path = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    folder, last = os.path.split(path)
    return folder if folder and last.startswith(ASIDE) else path


class ShortFormatter(TextFormatter):
    """The last line of a trace in place of all of it."""

    def formatException(self, ei: Any) -> str:  # noqa: N802
        whole: str = super().formatException(ei)
        return whole.splitlines()[-1]

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return ""


def tell_of_threads(tell: Callable[[str], None]) -> None:
    """Say in one line how a thread ended that nobody waits for."""

    def failed(given: threading.ExceptHookArgs) -> None:
        if given.exc_value is not None and not isinstance(given.exc_value, SystemExit):
            tell(f"{given.thread.name if given.thread else 'a thread'}: {message_of(given.exc_value)}")

    threading.excepthook = failed
