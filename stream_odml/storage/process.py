"""Whether a process of this machine lives: files that it left say its number."""

from __future__ import annotations

import os


def is_alive(pid: int) -> bool:
    """Return whether there is a process of this number, whosever it is."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
