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

torch.ones(1)
keep = "{keep}" == "True"
if keep:
    keep_freed_memory()
before = resident()
big = torch.ones(64 << 20, dtype=torch.uint8)
del big
held = resident() - before
give_back_memory()
print(held, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux counts the pages")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_is_kept_and_given_back(keep: bool) -> None:
    command = [sys.executable, "-c", _SCRIPT.format(keep=keep)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    held, left = (int(word) for word in done.stdout.split())
    assert (held > 50) == keep
    assert left < 10
