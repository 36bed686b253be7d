"""Memory of freed tensors, kept by the process from step to step instead of given back to the kernel."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> None:
    """glibc maps every large block anew and unmaps it when it is freed, so that each step waits for the kernel to
    hand out and clear the pages that the last one had: a seventh of a step with activations of 40 MB. To be called
    by processes that learn, once; does nothing where the C library is another."""
    if hasattr(_libc(), "mallopt"):
        _libc().mallopt(_MMAP_MAX, 0)
        _libc().mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """What is free now goes back to the kernel: between two stages others may need it."""
    if hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
