"""A profile of training steps: a Chrome trace to look at, and a table of what took the time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP = 3
"""Steps before the first that is recorded: the first ones allocate and calibrate."""


class StepProfile:
    """Call `step` after every training step; after WARM_UP and ``steps`` of them the two files are written."""

    def __init__(self, steps: int, write: Callable[[str, bytes], None], name: str) -> None:
        """``write(path, content)`` gets profiles/NAME.trace.json and profiles/NAME.txt."""
        self._write, self._name, self._left = write, name, WARM_UP + steps
        self._profile: Any = profile(
            activities=[ProfilerActivity.CPU]
            + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
            schedule=schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1),
            on_trace_ready=self._keep,
            record_shapes=False,
        )
        self._profile.start()

    def step(self) -> bool:
        """Note the end of a step; True when the profile is complete and was written."""
        self._profile.step()
        self._left -= 1
        if self._left > 0:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Write what was recorded, also when the stage had fewer steps. Harmless when repeated."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _keep(self, recorded: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(trace))
            self._write(f"profiles/{self._name}.trace.json", trace.read_bytes())
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=60)
        self._write(f"profiles/{self._name}.txt", table.encode())
