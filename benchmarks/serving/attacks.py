"""What another client waits while one attacks: single vectors and small images, at twenty a second, beside each attack
in turn; first the app under plain uvicorn, then the service as a stream runs it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from benchmarks.common import Report, percentile
from benchmarks.serving.asking import Asker
from benchmarks.serving.hostile_clients import ATTACKS, SAME, Target, attacked_by, slow_bodies, slow_headers
from benchmarks.serving.roots import MadeRoot, request_body
from stream_odml.cluster.runtime import free_port, ray_session
from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.decode import encode_image

DIM, K, ITEMS = 128, 10, 20_000
PER_SECOND, CONNECTIONS = 20.0, 4
NEAR = "_same_address"
SECONDS, QUICK_SECONDS = 6.0, 3.0
UNDER_WAY_S = 1.5
"""From the start of the attacker's process to its first requests."""


def measure_attacks(report: Report, seed: int) -> None:
    """Beside each attack: the other client's waits, what it was refused, and whether the service still stands."""
    with tempfile.TemporaryDirectory() as folder:
        root = MadeRoot(f"{folder}/root", DIM, seed)
        root.ingest(root.vectors(ITEMS))
        root.close()
        for name, server in (("uvicorn", _plain), ("served", _served)):
            with server(root.uri) as url:
                _attack(report, name, Target(url, DIM), seed)
    rows = [row for row in report.rows if row.get("part") == "attacks"]
    report.figure("other_client_p99_s", max(row["p99_s"] for row in rows))
    report.figure("unanswered", float(sum(row["unanswered"] for row in rows)))
    # A peer is an address: who shares the attacker's address shares its connections too.
    apart = [row for row in rows if not row["attack"].endswith(NEAR)]
    report.figure("unanswered_elsewhere", float(sum(row["unanswered"] for row in apart)))
    report.figure("attacks", float(len(rows)))
    report.figure("crashed", float(sum(row["crashed"] for row in rows)))


def _attack(report: Report, server: str, target: Target, seed: int) -> None:
    bodies = _questions(seed)
    near = replace(target, source=SAME)
    plan = [*((attack, target) for attack in ATTACKS), (slow_headers, near), (slow_bodies, near)]
    for attack, by in plan:
        name = attack.__name__ + (NEAR if by is near else "")
        with attacked_by(attack, by):
            time.sleep(UNDER_WAY_S)
            with Asker(target.url, bodies, CONNECTIONS, PER_SECOND) as asker:
                time.sleep(QUICK_SECONDS if report.quick else SECONDS)
        row = _row(asker, target.url)
        report.row(part="attacks", server=server, attack=name, **row)
        report.say(
            f"{server} {name}: p99 {row['p99_s']:.3f} s, {row['unanswered']} of {row['asked']} unanswered"
        )


def _row(asker: Asker, url: str) -> dict[str, Any]:
    waits = [seen.seconds for seen in asker.seen]
    statuses = [seen.status for seen in asker.seen]
    return {
        "asked": len(waits),
        "p50_s": percentile(waits, 50) or 0.0,
        "p99_s": percentile(waits, 99) or float("inf"),
        "worst_s": max(waits, default=float("inf")),
        "unanswered": sum(status != 200 for status in statuses),
        "statuses": {str(status): statuses.count(status) for status in sorted(set(statuses))},
        "crashed": int(not _stands(url)),
    }


def _stands(url: str) -> bool:
    """Whether the service answers again within ten seconds."""
    for _ in range(10):
        try:
            return httpx.get(f"{url}/readyz", timeout=1).status_code == 200
        except httpx.HTTPError:
            time.sleep(0.5)
    return False


def _questions(seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    vectors = [request_body(rng.normal(size=DIM).astype(np.float32), K) for _ in range(3)]
    picture = encode_image(rng.integers(0, 255, size=(224, 224, 3), dtype=np.uint8), "JPEG")
    return [*vectors, json.dumps({"image": base64.b64encode(picture).decode(), "k": K}).encode()]


@contextmanager
def _plain(root: str) -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.serving.attacked", root, str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(60):
            if _stands(url):
                break
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


@contextmanager
def _served(root: str) -> Iterator[str]:
    with ray_session(None, cpus=2):
        from stream_odml.cluster.serve import start_service, stop_service

        yield start_service(root, ServiceOptions(port=free_port(), num_cpus=0.5))
        stop_service()
