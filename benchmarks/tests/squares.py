"""A data set of coloured squares, and the study's command line over it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.common import read_rows
from benchmarks.quality import __main__ as command
from benchmarks.quality.rows import Row


def squares(folder: Path) -> Path:
    """Write 12 classes of 10 squares of one colour each, a little noisy; return the file."""
    random = np.random.default_rng(0)
    images, names = [], []
    for c in range(12):
        colour = random.integers(0, 256, 3)
        for _ in range(10):
            pixels = np.clip(colour + random.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            images.append(buffer.getvalue())
            names.append(f"class/{c}")
    path = folder / "squares.parquet"
    pq.write_table(pa.table({"image": images, "class_name": names}), path)
    return path


def arguments(parquet: Path, out: Path, *more: str) -> list[str]:
    """The command line of a run of three stages."""
    return [
        "quality", "--data", str(parquet), "--protocol", "6+2*3", "--methods", "distilled,sdc_l2,joint,frozen_f0",
        "--image-size", "16", "--dim", "8", "--base-steps", "3", "--steps", "2", "--out", str(out),
        "--set", "classes_per_batch=3", "--set", "images_per_class=2", "--select", "test", *more,
    ]  # fmt: skip


def with_lift(width: int, methods: str) -> str:
    """Return the methods, each with so many random features."""
    return ",".join(f"{name}={name}:head.lift={width}" for name in methods.split(","))


def run(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    """Run it."""
    monkeypatch.setattr("sys.argv", argv)
    command.main()


def without_seconds(out: Path) -> list[Row]:
    """The rows that it wrote but for times."""
    rows = read_rows(out / "quality-squares.json")
    kept = [row for row in rows if row["metric"] not in ("train_s", "pass_s")]
    return sorted(kept, key=lambda row: json.dumps(row, sort_keys=True))
