"""Adoption: seconds and memory of the whole command, and the recall of what was adopted some stages later."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import Report
from benchmarks.doors.made import GIB, land_and_learn, means, vector_stream, vectors, write_table
from stream_odml.exchange.adopting import adopt
from stream_odml.exchange.places import open_source
from stream_odml.exchange.source import Names
from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.learn.feature_codes import encode
from stream_odml.pipeline.first_version import open_root
from stream_odml.store.store import Store

DIM, ITEMS, CLASSES = 512, 1_000_000, 2_000
NOISE = 1.8
"""At which recall is far from both of its ends."""
_COMMAND = """
import pathlib, sys, time
from stream_odml.cli.main import main
sys.argv = ["stream-odml", "adopt", sys.argv[1], "--root", sys.argv[2], "--json"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
# All its threads: what the command takes where nobody else uses the cores is half of it or more, on two.
print(time.process_time())
# Of this program alone: what getrusage tells begins with the peak of the process that started it.
print(next(line.split()[1] for line in pathlib.Path("/proc/self/status").open() if line.startswith("VmHWM")))
"""


def measure_adopt(report: Report, folder: Path, seed: int) -> None:
    """Run the command on a Parquet file, in a process of its own."""
    items = 20_000 if report.quick else ITEMS
    write_table(folder / "items.parquet", items, DIM, CLASSES // (10 if report.quick else 1), seed)
    report.say(f"{items} x {DIM} made")
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", _COMMAND, str(folder / "items.parquet"), str(folder / "root")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - began
    *_, found, cpu_s, peak_kib = run.stdout.strip().splitlines()
    said = json.loads(found)
    assert said["items"] == items, said
    assert said["version"], said
    gib = int(peak_kib) * 1024 / GIB
    report.row(part="adopt", seed=seed, items=items, seconds=seconds, cpu_s=float(cpu_s), gib=gib)
    report.figure("adopt_items", items)
    report.figure("adopt_s" if report.quick else "adopt_1m_512_s", seconds)
    report.figure("adopt_cpu_s", float(cpu_s))
    report.figure("adopt_peak_gib", gib)


def measure_recall(report: Report, folder: Path, seed: int) -> None:
    """Compare, after three more stages, the recall of adopted items with that of a stream that learnt them itself."""
    classes, dim, each = (20, 64, 12) if report.quick else (100, 128, 20)
    mean = means(4 * classes, dim, seed)
    tasks = [np.repeat(np.arange(at, at + classes), each) for at in range(0, 4 * classes, classes)]
    parts = [vectors(mean, labels, seed + at, NOISE) for at, labels in enumerate(tasks)]
    queries = vectors(mean, tasks[0], seed + 99, NOISE)
    heads = {}
    for name in ("adopted", "native"):
        config = vector_stream(folder / name, dim, lift=0)
        if name == "native":
            open_root(config)
        for at, (labels, h) in enumerate(zip(tasks, parts, strict=True)):
            names = [f"class {label}" for label in labels]
            if name == "adopted" and at == 0:
                file = folder / "first.npz"
                np.savez(file, vector=h, label=np.array(names))
                adopt(open_source(str(file), Names()), config)
            else:
                land_and_learn(config, f"task-{at}", names, h)
        store = Store.open(config.root)
        heads[name] = store.head_of(store.tree.head)
    recalls = {name: _recall(head, parts[0], tasks[0], queries) for name, head in heads.items()}
    for name, recall in recalls.items():
        report.row(part="recall", seed=seed, stream=name, recall=recall)
        report.figure(f"recall_{name}", recall)
    report.figure("adopted_recall_difference", abs(recalls["adopted"] - recalls["native"]))


def _recall(head: DiscriminantHead, gallery: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> float:
    """Recall@1 of queries, one of each item, in a gallery as it is stored."""
    stored, asked = (head.embed(h)[:, : head.known_dim or None] for h in (encode(gallery).decode(), queries))
    return float((labels[(asked @ stored.T).argmax(axis=1)] == labels).mean())
