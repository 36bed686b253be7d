"""Which process plays which part, by the titles that Ray gives them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.faults.process import family_of

TITLES = {
    "driver": "ray::StreamDriver",
    "indexer": "ray::Indexer",
    "worker": "ray::RayTrainWorker",
    "train_controller": "ray::TrainController",
    "reader": "ray::MapBatches",
    "idle": "ray::IDLE",
    "replica": "ray::ServeReplica",
    "serve_controller": "ray::ServeController",
    "proxy_manager": "ray::HAProxyManager",
}
TOPIC_READER = "stream_odml.ingest.kafka_process"
PROGRAMS = {"haproxy": "proxy", "raylet": "raylet", "gcs_server": "gcs"}

Cast = dict[str, frozenset[int]]


def cast_of(session: int) -> Cast:
    """Process ids by role, of all that ``session`` started."""
    found: dict[str, set[int]] = {}
    for pid in family_of(session):
        role = _role(pid)
        if role is not None:
            found.setdefault(role, set()).add(pid)
    return {role: frozenset(pids) for role, pids in found.items()}


def readers_among(pids: frozenset[int]) -> list[int]:
    """Those that run a data task at this instant: each is over in milliseconds."""
    return [pid for pid in pids if _role(pid) == "reader"]


def _role(pid: int) -> str | None:
    line = ""
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    for role, title in TITLES.items():
        if line.startswith(title):
            return role
    if TOPIC_READER in line.split("\0"):
        return "reader_of_topics"
    return PROGRAMS.get(line.partition("\0")[0].rpartition("/")[2])
