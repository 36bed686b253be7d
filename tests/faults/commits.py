"""A hundred thousand commits to the ledger, tidied on the way as a stream does: nothing grows with their number.

The commits are forged, a link and a log entry each, without the library that takes 10 ms for one: a thousand, then a
round of maintenance, and so on. A second store follows after each round, a third sleeps until the end.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from stream_odml.store.fence import DEFAULTS
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.tables import LEDGER
from stream_odml.store.writer import Writer
from tests.measured import Measured

COMMITS, QUICK_COMMITS, ROUND = 100_000, 5_000, 1_000
POLICY = MaintenancePolicy(retention=timedelta(0), log_retention=timedelta(0), orphan_age=timedelta(0))


def run(report: Measured, commits: int) -> int:
    """Files and seconds of each round, first and last as figures; how many promises were broken."""
    with tempfile.TemporaryDirectory(prefix="commits-") as folder:
        root = Path(folder) / "root"
        Store.create(str(root), 8)
        follower, sleeper = Store.open(str(root)), Store.open(str(root))
        writer = Writer.claim(str(root), "benchmark")
        rounds = []
        for done in report.track(range(0, commits, ROUND), "rounds of commits"):
            _forge(root, done, writer)
            row: dict[str, float] = {"commits": done + ROUND, "most_files": _files(root)}
            row |= {
                "maintain_s": _seconds(lambda: writer.maintain(POLICY)),
                "follow_s": _seconds(follower.refresh),
            }
            rounds.append({**row, "log_files": _count(root / "ledger" / "_delta_log"), "files": _files(root)})
            report.row(part="commits", **rounds[-1])
            _age(root)
        report.figure("commits", float(commits))
        for name in ("files", "log_files", "most_files", "maintain_s", "follow_s"):
            report.figure(f"{name}_first", float(rounds[1][name]))
            report.figure(f"{name}_last", float(rounds[-1][name]))
        report.figure("sleeper_s", _seconds(sleeper.refresh))
        report.figure("open_s", _seconds(lambda: Store.open(str(root))))
        writer.release()
        rows = DeltaTable(str(root / "ledger")).to_pyarrow_table()["kind"].to_pylist()
        return int(rows.count("note") != commits) + sum(
            s.ledger != writer.ledger for s in (follower, sleeper)
        )


def _forge(root: Path, done: int, writer: Writer) -> None:
    """Commits of one row each, of a kind that the ledger passes over."""
    table, version = root / "ledger", DeltaTable(str(root / "ledger")).version()
    row = {
        **DEFAULTS["ledger"],
        "seq": writer.ledger.seq,
        "kind": "note",
        "time": None,
        "epoch": writer.epoch,
    }
    first = table / f"part-{done:06d}.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema=LEDGER), first)
    size, now = first.stat().st_size, int(time.time() * 1000)
    for number in range(ROUND):
        name = f"part-{done + number:06d}.parquet"
        if number:
            os.link(first, table / name)
        add = {"path": name, "partitionValues": {}, "size": size, "dataChange": True, "modificationTime": now}
        (table / "_delta_log" / f"{version + 1 + number:020d}.json").write_text(json.dumps({"add": add}))


def _age(root: Path) -> None:
    """Let an hour pass for the log: Delta goes by the time of its files."""
    past = time.time() - 3600
    for path in root.glob("*/_delta_log/*"):
        os.utime(path, (past, past))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return round(time.perf_counter() - began, 3)


def _files(root: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(root))


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())
