"""One line of what an error says, for messages that name it: Ray, Delta and S3 say theirs in many."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line that is not blank; the kind of an error without words."""
    return next(iter(_lines(str(error))), type(error).__name__)


def last_line(trace: str, otherwise: str = "") -> str:
    """Return the last line that is not blank: of a trace the error itself."""
    return next(reversed(_lines(trace)), otherwise)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
