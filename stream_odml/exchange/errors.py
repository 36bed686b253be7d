"""What goes wrong with another store, in one line that says what to do."""

from __future__ import annotations

import importlib
from typing import Any


class ExchangeError(ValueError):
    """A source or target that cannot be used as it was named. Nothing of it was taken, nothing written."""


class SourceLost(OSError):
    """A source that answered and does not any more. What came is stored; the same command goes on behind it."""


def library(module: str, extra: str) -> Any:
    """Import a library that an optional extra brings. Raises ExchangeError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExchangeError(
            f"{module.partition('.')[0]} is not installed ({error}); pip install 'stream-odml[{extra}]'"
        ) from None
