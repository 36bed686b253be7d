"""Queries over many swaps with two replicas: none may fail, none may mix versions, none may wait; memory stays."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import Report, percentile
from benchmarks.serving.asking import Asker, Seen
from benchmarks.serving.roots import MadeRoot, request_body
from stream_odml.cluster.runtime import free_port, ray_session
from stream_odml.config.service import ServiceOptions

DIM, ITEMS, ASKED, NEW = 64, 5_000, 500, 2
"""Few are new, so that memory tells what a swap leaves behind, and not how the gallery grows."""
SWAPS, EVERY_S, CONNECTIONS, REPLICAS = 160, 1.75, 4, 2
WARM = 60
AROUND_S = 0.5
LOOK_S = 0.2
COSINE = 1e-3


def measure_swaps(report: Report, seed: int) -> None:
    """Half of the swaps are model changes, half new items. Every query is an item's first vector under the first
    version: whatever is served, its nearest neighbour is that item with cosine 1."""
    swaps = 6 if report.quick else SWAPS
    with tempfile.TemporaryDirectory() as folder, ray_session(None, cpus=2):
        from stream_odml.cluster.serve import start_service, stop_service

        root = MadeRoot(f"{folder}/root", DIM, seed)
        vectors = root.vectors(ITEMS)
        ids = root.ingest(vectors)
        chosen = np.random.default_rng(seed).choice(ITEMS, ASKED, replace=False)
        bodies = [request_body(vectors[i], 1, root.first) for i in chosen]
        options = ServiceOptions(port=free_port(), replicas=REPLICAS, num_cpus=0.5, poll_s=0.1)
        url = start_service(root.uri, options)
        memory = []
        with Asker(url, bodies, CONNECTIONS) as asker:
            time.sleep(3)
            for number in report.track(range(swaps), "swaps"):
                _ = root.stage() if number % 2 else root.ingest(root.vectors(NEW))
                memory.append(_least_memory(Path(root.uri), EVERY_S))
        stop_service()
        root.close()
    _classify(report, asker.seen, [ids[i] for i in chosen], memory, swaps)


def _least_memory(root: Path, seconds: float) -> dict[str, float]:
    """The least that each replica holds meanwhile: what stays when a swap is over, not what building one takes."""
    least = _memory(root)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(LOOK_S, left))
        now = _memory(root)
        least = {pid: min(now[pid], least.get(pid, now[pid])) for pid in now}
    return least


def _memory(root: Path) -> dict[str, float]:
    """Resident MB of each replica, as their announcements name them."""
    found = {}
    for path in (root / "metrics").glob("replica-*.json"):
        pid = json.loads(path.read_text())[0]["labels"]["__meta_pid"]
        found[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    return found


def _classify(
    report: Report, seen: list[Seen], items: list[str], memory: list[dict[str, float]], swaps: int
) -> None:
    wrong = [one for one in seen if one.status == 200 and not _right(one, items[one.number % ASKED])]
    first: dict[int, float] = {}
    for one in sorted(seen, key=lambda one: one.began):
        if one.status == 200:
            first.setdefault(one.answer["sequence"], one.began)
    moments = np.array(sorted(first.values())[1:])
    near: list[float] = []
    far: list[float] = []
    for one in seen:
        close = len(moments) > 0 and float(np.abs(moments - one.began).min()) <= AROUND_S
        (near if close else far).append(one.seconds * 1e3)
    report.figure("swaps", float(swaps))
    report.figure("swap_queries", float(len(seen)))
    report.figure("swap_failed", float(sum(one.status != 200 for one in seen)))
    report.figure("swap_mixed_version", float(len(wrong)))
    around, rest = percentile(near, 99), percentile(far, 99)
    if around is not None and rest is not None:
        report.figure("swap_p99_ms", around)
        report.figure("swap_p99_extra_ms", around - rest)
    slopes = _slopes(memory[WARM:])
    if slopes:
        report.figure("rss_slope_mb_per_100_swaps", max(slopes.values()))
    began = min(one.began for one in seen) if seen else 0.0
    failed = [(one.status, one.began - began, one.seconds) for one in seen if one.status != 200]
    report.row(part="swaps", p99_around_ms=around, p99_rest_ms=rest, failed_status_at_took=failed[:100],
               memory=memory[:: max(1, swaps // 20)])  # fmt: skip


def _right(one: Seen, item: str) -> bool:
    hit = one.answer["hits"][0]
    return bool(hit["id"] == item and abs(hit["score"] - 1) <= COSINE)


def _slopes(memory: list[dict[str, float]]) -> dict[str, float]:
    """MB per 100 swaps of each replica, by least squares."""
    if len(memory) < 10:
        return {}
    common = set.intersection(*(set(one) for one in memory))
    at = np.arange(len(memory))
    return {pid: 100 * float(np.polyfit(at, [one[pid] for one in memory], 1)[0]) for pid in common}
