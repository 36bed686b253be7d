"""Freed memory stays with the process until it is given back: seen in the pages that Linux counts for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import torch
from stream_odml.learn.memory import give_back_memory, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

def held_and_left():
    before = resident()
    big = torch.ones(64 << 20, dtype=torch.uint8)
    del big
    held = resident() - before
    give_back_memory()
    return held, resident() - before

torch.ones(1)
print(*held_and_left())
keep_freed_memory()
print(*held_and_left())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux counts the pages")
def test_freed_memory_is_kept_and_given_back() -> None:
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    for line, is_kept in zip(done.stdout.splitlines(), (False, True), strict=True):
        held, left = map(int, line.split())
        assert (held > 50) == is_kept
        assert left < 10
