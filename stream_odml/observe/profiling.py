"""A profile of training steps: a Chrome trace to look at, and a table of what took the time."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP = 3
"""Steps before the first that is recorded: the first ones allocate and calibrate."""


@contextlib.contextmanager
def profiled(steps: int, write: Callable[[str, bytes], None], name: str) -> Iterator[Callable[[], None]]:
    """Yield what is to be called after every training step. After WARM_UP and `steps` of them, or where the block
    ends before, `write(path, content)` gets profiles/NAME.trace.json and profiles/NAME.txt."""

    def keep(recorded: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(trace))
            write(f"profiles/{name}.trace.json", trace.read_bytes())
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=60)
        write(f"profiles/{name}.txt", table.encode())

    gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    plan = schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1)
    with profile(activities=[ProfilerActivity.CPU, *gpu], schedule=plan, on_trace_ready=keep) as recording:
        yield recording.step
