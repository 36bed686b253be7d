"""What a message says in one line: of an error, where Ray, Delta and S3 say theirs in many, and of a long list."""

from __future__ import annotations

import re
from collections.abc import Sequence

TREE = "\u21b3"
"""What the Delta library draws before each cause of an error."""


def first_line(error: BaseException) -> str:
    """Return the first line that is not blank; the kind of an error without words."""
    text = str(error)
    return next(iter(_lines(flat(text) if TREE in text else text)), type(error).__name__)


def flat(text: str) -> str:
    """Return a text of several lines as one, of the coloured tree of causes that the Delta library draws too."""
    between = ": " if TREE in text else " "
    return between.join(_lines(re.sub(rf"\x1b\[[0-9;]*m|{TREE}", "", text)))


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
