"""A task whose pixels are several times larger than the memory that the process may allocate."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Report
from stream_odml.ingest.cache import CacheMember, PixelCache
from stream_odml.ingest.sampler import PKSampler

SIZE, MEMBER_ROWS, BLOCK = 32, 10_000, 500
LIMIT_MIB = 1024


def measure(report: Report, seed: int) -> None:
    """Fill the cache of 10^6 images of 32 x 32 and draw batches, in a process that may allocate 1 GiB."""
    images = 100_000 if report.quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.ingest.memory", folder, str(images), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        report.row(part="memory", seed=seed, images=images, failed=done.stderr[-500:])
        return
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    report.row(part="memory", seed=seed, images=images, limit_mib=LIMIT_MIB, **found)
    report.figure("task_pixels_over_memory_limit", found["pixels_mib"] / LIMIT_MIB)
    report.figure("task_peak_anonymous_mib", found["peak_anonymous_mib"])
    report.figure("task_batch_ms", found["batch_ms"])


def _limited(folder: str, images: int, seed: int) -> dict[str, float]:
    # Heap and private maps count against RLIMIT_DATA; pages of a file that is mapped shared are the kernel's to drop.
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_MIB << 20, LIMIT_MIB << 20))
    _cannot_hold(2 * LIMIT_MIB << 20)
    members = [
        CacheMember(f"s{m}", range(MEMBER_ROWS), [f"c{m}-{row % 50}" for row in range(MEMBER_ROWS)])
        for m in range(images // MEMBER_ROWS)
    ]
    cache = PixelCache(Path(folder) / "cache", members, SIZE)
    began, peak = time.perf_counter(), 0.0
    block = np.random.default_rng(seed).integers(0, 256, (BLOCK, SIZE, SIZE, 3), np.uint8)
    for member in range(len(members)):
        for start in range(0, MEMBER_ROWS, BLOCK):
            cache.write(member, np.arange(start, start + BLOCK, dtype=np.int32), block)
        peak = max(peak, _anonymous_mib())
    cache.finish()
    filled = time.perf_counter() - began
    sampler = PKSampler(cache.labels, 32, 4, seed)
    began, steps = time.perf_counter(), 500
    for step in range(steps):
        cache.batch(sampler.batch(step))
    batch_ms = 1e3 * (time.perf_counter() - began) / steps
    return {
        "pixels_mib": len(cache) * SIZE * SIZE * 3 / 2**20,
        "fill_s": filled,
        "batch_ms": batch_ms,
        "peak_anonymous_mib": max(peak, _anonymous_mib()),
    }


def _cannot_hold(size: int) -> None:
    try:
        np.ones(size, np.uint8)
    except MemoryError:
        return
    raise RuntimeError("the memory limit does not hold here, so this measurement would show nothing")


def _anonymous_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


if __name__ == "__main__":
    print(json.dumps(_limited(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
