"""The gallery, measured: mapping 100k x 512 against the tiled public formula, and a million vectors in bounded memory.

    python -m benchmarks.gallery
    python -m benchmarks.gallery --only map

The tiled formula is that of Semantic Drift Compensation (Yu et al., CVPR 2020) written with copies of both operands,
as public code has it; it is timed on few rows and scaled, for its time is proportional to them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Report, common_arguments
from benchmarks.serving.roots import MadeRoot
from stream_odml.learn.drift import AffineMap, DriftMap, KernelMap
from stream_odml.search.applying import BLOCK
from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.store import Store
from stream_odml.store.tables import FloatArray

Floats = NDArray[np.float32]
ANCHORS = 2500
WIDTH = 0.3
TILED_ROWS = 64
TILED_AT_ONCE = 8
GIB = 2**30


def tiled_sdc(vectors: Floats, anchors: Floats, residuals: Floats) -> Floats:
    """Vectors plus the residuals of the anchors, weighted by a Gaussian of the distance of their directions."""
    out = np.empty_like(vectors)
    m = len(anchors)
    for start in range(0, len(vectors), TILED_AT_ONCE):
        rows = vectors[start : start + TILED_AT_ONCE]
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        apart = np.tile(unit[:, None, :], (1, m, 1)) - np.tile(anchors[None], (len(rows), 1, 1))
        weights = np.exp(-np.sum(apart**2, axis=2) / (2 * WIDTH**2))
        weights /= np.tile(weights.sum(axis=1)[:, None], (1, m))
        moved = np.tile(weights[:, :, None], (1, 1, rows.shape[1])) * np.tile(
            residuals[None], (len(rows), 1, 1)
        )
        out[start : start + TILED_AT_ONCE] = rows + moved.sum(axis=1)
    return out


def _in_blocks(drift: DriftMap, vectors: FloatArray, out: FloatArray) -> None:
    """Map vectors [n, d] as a reader does."""
    for start in range(0, len(vectors), BLOCK):
        out[start : start + BLOCK] = drift.apply(vectors[start : start + BLOCK])


def measure_map(report: Report, seed: int) -> None:
    """Seconds for 100k x 512 by an affine map and by a kernel map, and for the tiled formula."""
    n, dim = (10_000 if report.quick else 100_000), 512
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    anchors = rng.standard_normal((ANCHORS, dim), dtype=np.float32)
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    residuals = 0.1 * rng.standard_normal((ANCHORS, dim), dtype=np.float32)
    affine = AffineMap(np.eye(dim) + 0.02 * rng.normal(size=(dim, dim)), 0.1 * rng.normal(size=dim))
    kernel = KernelMap(anchors, residuals, None, "gaussian", WIDTH, 0.0)
    out = np.empty_like(vectors)
    affine_s = _best(lambda: _in_blocks(affine, vectors, out), 5)
    kernel_s = _best(lambda: _in_blocks(kernel, vectors, out), 2)
    few = vectors[:TILED_ROWS]
    tiled_s = _best(lambda: tiled_sdc(few, anchors, residuals), 2) * n / TILED_ROWS
    apart = float(np.abs(tiled_sdc(few, anchors, residuals) - out[:TILED_ROWS]).max())
    report.row(
        part="map", n=n, dim=dim, affine_s=affine_s, kernel_s=kernel_s, tiled_s=tiled_s, difference=apart
    )
    report.figure("map_100k_512_s", affine_s)
    report.figure("kernel_map_100k_512_s", kernel_s)
    report.figure("tiled_sdc_100k_512_s", tiled_s)
    report.figure("map_over_tiled_sdc", tiled_s / affine_s)
    report.figure("kernel_map_over_tiled_sdc", tiled_s / kernel_s)
    report.figure("map_max_difference", apart)


def _best(work: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_million(report: Report, seed: int) -> None:
    """Load, stage swap and tier-1 swap of 1M x 128, exact and approximate, each in a process of its own."""
    n = 50_000 if report.quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        root = MadeRoot(str(Path(folder) / "root"), 128, seed)
        report.say(f"writing {n} items")
        for _ in range(0, n, 100_000):
            root.ingest(root.vectors(min(n, 100_000)))
        for kind in ("exact", "ivf"):
            found = _in_a_reader(root, kind)
            report.row(part="million", n=n, dim=128, kind=kind, **found)
            prefix = "" if kind == "exact" else "ivf_"
            for name, value in found.items():
                report.figure(f"{prefix}{name}", value)
        root.close()


def _in_a_reader(root: MadeRoot, kind: str) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(target=_read, args=(root.uri, kind, theirs))
    reader.start()
    try:
        ours.recv()
        root.stage()
        ours.send("stage")
        ours.recv()
        root.ingest(root.vectors(50))
        ours.send("items")
        found: dict[str, float] = ours.recv()
    finally:
        reader.join(timeout=60)
    return found


def _read(uri: str, kind: str, link: Connection) -> None:
    """What a replica does with a root, timed. Runs in its own process, whose peak memory is the reader's alone."""
    before = _peak_gib()
    start = time.perf_counter()
    store = Store.open(uri)
    snapshot = GallerySnapshot.load(store, SearchSettings(kind=kind))
    found = {"load_1m_128_s": time.perf_counter() - start}
    found["loaded_1m_128_gib"] = sum(snapshot.memory().values()) / GIB
    link.send("loaded")
    for name in ("stage_swap_1m_128_s", "tier1_swap_1m_128_s"):
        link.recv()
        start = time.perf_counter()
        store.refresh()
        snapshot = snapshot.refreshed(store)
        found[name] = time.perf_counter() - start
        if name.startswith("stage"):
            link.send("swapped")
    queries = np.random.default_rng(1).standard_normal((1, 128), dtype=np.float32)
    found["query_1m_128_ms"] = 1e3 * _best(lambda: snapshot.search(queries, snapshot.version, 10), 20)
    found["recall_1m_128"] = snapshot.recall
    found["peak_1m_128_gib"] = _peak_gib()
    found["imports_gib"] = before
    link.send(found)


def _peak_gib() -> float:
    """Most memory this process has held. (getrusage would start from the process that forked it.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / GIB


PARTS = {"map": measure_map, "million": measure_million}


def main() -> None:
    """Measure and write `gallery.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    common_arguments(parser)
    arguments = parser.parse_args()
    report = Report.begin("gallery", arguments)
    for part in arguments.only:
        PARTS[part](report, report.seeds[0])
    report.write(keep=len(arguments.only) < len(PARTS))


if __name__ == "__main__":
    main()
