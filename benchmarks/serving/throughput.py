"""HTTP vector search of one replica behind Serve's proxy against the plain server, with wrk, in turns; and the layer
over FAISS inside one process."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np
import torch

from benchmarks.common import Report
from benchmarks.serving.roots import Floats, MadeRoot, request_body
from stream_odml.cluster.runtime import free_port, ray_session
from stream_odml.config.service import ServiceOptions
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.store import Store

faiss: Any = typed_faiss
DIM, K = 128, 10
CONNECTIONS = (1, 8, 32)
ITEMS = 100_000
ROUNDS, SECONDS = 3, 5
DEFAULT_SWITCH = 128_000
"""FAISS's own value of ``distance_compute_blas_threshold``."""


def measure_http(report: Report, seed: int) -> None:
    """Throughput ratios at 8 and 32 connections, and what one connection waits longer."""
    if shutil.which("wrk") is None:
        report.say("wrk is not installed (apt-get install wrk): HTTP throughput is not measured")
        return
    with tempfile.TemporaryDirectory() as folder, ray_session(None, cpus=2):
        from stream_odml.cluster.serve import start_service, stop_service

        root = MadeRoot(f"{folder}/root", DIM, seed)
        vectors = root.vectors(ITEMS)
        root.ingest(vectors)
        np.save(f"{folder}/vectors.npy", vectors)
        script = _script(Path(folder), vectors[0])
        port = free_port()
        plain = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.plain", f"{folder}/vectors.npy", str(port)]
        )
        try:
            ours = start_service(root.uri, ServiceOptions(port=free_port(), num_cpus=0.5))
            urls = {"plain": f"http://127.0.0.1:{port}", "ours": ours}
            _wait(urls["plain"], script.with_suffix(".json").read_bytes())
            _compare(report, urls, script)
            stop_service()
        finally:
            plain.terminate()
            plain.wait(timeout=20)
            root.close()


def _compare(report: Report, urls: dict[str, str], script: Path) -> None:
    rates: dict[tuple[str, int], list[float]] = {}
    waits: dict[tuple[str, int], list[float]] = {}
    for turn in range(1 if report.quick else ROUNDS):
        for connections in CONNECTIONS:
            for name, url in urls.items():
                found = run_wrk(url, script, connections, 3 if report.quick else SECONDS)
                report.row(part="http", server=name, connections=connections, turn=turn, **found)
                rates.setdefault((name, connections), []).append(found["requests_per_s"])
                waits.setdefault((name, connections), []).append(found["p50_ms"])
        report.say(f"http: round {turn + 1}")
    for connections in CONNECTIONS[1:]:
        ours, plain = (statistics.median(rates[name, connections]) for name in ("ours", "plain"))
        report.figure(f"http_vector_over_uvicorn_c{connections}", ours / plain)
        report.figure(f"http_vector_per_s_c{connections}", ours)
    extra = statistics.median(waits["ours", 1]) - statistics.median(waits["plain", 1])
    report.figure("http_vector_p50_extra_ms_c1", extra)


def run_wrk(url: str, script: Path, connections: int, seconds: int) -> dict[str, float]:
    """Requests per second, p50 and p99 in ms, and answers that were no 2xx."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        f"{url}/v1/search",
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    found = {"requests_per_s": float(rate.group(1)), "refused": float(refused.group(1)) if refused else 0.0}
    for share in (50, 99):
        match = re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", text)
        if match is not None:
            found[f"p{share}_ms"] = float(match.group(1)) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match.group(2)]
    return found


def _script(folder: Path, vector: Floats) -> Path:
    body = folder / "post.json"
    body.write_bytes(request_body(vector, K))
    script = folder / "post.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.body = io.open("{body}", "rb"):read("*a")\n'
    )
    return script


def _wait(url: str, body: bytes) -> None:
    request = urllib.request.Request(f"{url}/v1/search", body, {"Content-Type": "application/json"})
    for _ in range(200):
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


def measure_layer(report: Report, seed: int) -> None:
    """A snapshot's search against FAISS alone in one process, each on one thread: one query, and batches of 32 against
    FAISS's default. Both are exact: the share of equal answers is a figure."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for items in (1_000, ITEMS):
            root = MadeRoot(f"{folder}/{items}", DIM, seed)
            vectors = root.vectors(items)
            root.ingest(vectors)
            root.close()
            snapshot = GallerySnapshot.load(Store.open(root.uri))
            queries = rng.standard_normal((32, DIM), dtype=np.float32)
            found = _layer(snapshot, vectors, queries)
            report.row(part="layer", items=items, **found)
            if items == ITEMS:
                report.figure("layer_over_faiss", found["layer_1"])
                report.figure("layer_over_faiss_batch32", found["layer_32"])
                report.figure("batch32_over_default_faiss", found["default_32_ms"] / found["ours_32_ms"])
                report.figure("batch32_same_neighbours", found["same_32"])
                report.figure("batch32_halves_mb", snapshot.memory()["halves"] / 1e6)
            else:
                report.figure("layer_over_faiss_1k", found["layer_1"])


def _layer(snapshot: GallerySnapshot, vectors: Floats, queries: Floats) -> dict[str, float]:
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    calibrated = faiss.cvar.distance_compute_blas_threshold

    def default(nq: int) -> None:
        faiss.cvar.distance_compute_blas_threshold = DEFAULT_SWITCH
        try:
            index.search(queries[:nq], K)
        finally:
            faiss.cvar.distance_compute_blas_threshold = calibrated

    found: dict[str, float] = {}
    for nq in (1, 32):
        works: dict[str, Callable[[], object]] = {
            "ours": lambda nq=nq: snapshot.search(queries[:nq], snapshot.version, K),  # type: ignore[misc]
            "tuned": lambda nq=nq: index.search(queries[:nq], K),  # type: ignore[misc]
            "default": lambda nq=nq: default(nq),  # type: ignore[misc]
        }
        times = {name: _in_turns(works, name, 25) for name in works}
        found |= {f"{name}_{nq}_ms": 1e3 * seconds for name, seconds in times.items()}
        found[f"layer_{nq}"] = times["ours"] / times["tuned"]
    rows = [[hit.row for hit in hits] for hits in snapshot.search(queries, snapshot.version, K)]
    found["same_32"] = float(np.mean(np.array(rows) == index.search(queries, K)[1]))
    return found


def _in_turns(works: dict[str, Callable[[], object]], name: str, times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        works[name]()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
