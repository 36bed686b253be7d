"""How a failure reaches a person: as one message. Its trace is for who asks for it with `--debug`."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable
from typing import Any

from stream_odml.ingest.reasons import BadShard, RowError
from stream_odml.observe.logs import TextFormatter

_TRACE = "Traceback (most recent call last)"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FREE_SOME = "; free some, and run the same command again"
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
    if "\u21b3" in text:  # the Delta library draws a coloured tree of causes
        lines = re.sub(r"\x1b\[[0-9;]*m|\u21b3", "", text).splitlines()
        text = ": ".join(stripped for line in lines if (stripped := line.strip()))
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f" at {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}{_FREE_SOME}"
    if any(f"(os error {number})" in text for number in _FULL):  # as libraries written in Rust say it
        return f"{text}{_FREE_SOME}"
    if text and isinstance(error, ValueError | OSError | RuntimeError | ClientError):
        return text
    return f"{type(error).__name__}{f': {text}' if text else ''}; {_ASK}"


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
