"""What a message says in one line: of an error, where Ray, Delta and S3 say theirs in many, and of a long list."""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """Return the first line that is not blank; the kind of an error without words."""
    return next(iter(_lines(str(error))), type(error).__name__)


def last_line(trace: str, otherwise: str = "") -> str:
    """Return the last line that is not blank: of a trace the error itself."""
    return next(reversed(_lines(trace)), otherwise)


def some(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """Return the first of `names`, and how many there are beside them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def quoted(names: Sequence[str]) -> str:
    """Return some of `names` with what a terminal would not show, or would obey, written out."""
    return some([repr(name)[1:-1] for name in names])


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
