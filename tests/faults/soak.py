"""An hour of an ordinary stream, 20 pushes and 40 shards a minute, nothing killed: what must stay flat does.

Files of the tables (logs and data), pushed files and memory are counted every few seconds. The policies of retention
are minutes here, so that an hour shows many rounds of each; with hours instead the same curve is longer.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stream_odml.store.tables import SCHEMAS
from tests.faults.live import Live
from tests.faults.process import family_of
from tests.measured import Measured

EVERY_S = 1.5
"""Between two shards; a push comes at half that pace."""
LOOK_S = 5.0
RETENTION_H, KEEP_PUSHED_H = 0.05, 0.1
QUICK_RETENTION_H, QUICK_KEEP_PUSHED_H = 0.0, 0.01
WARM = 0.4
"""Share of the time after which memory counts: libraries take what they keep, and the first models come."""

Sample = dict[str, float]


def run(report: Measured, minutes: float, quick: bool) -> int:
    """A row for each look, and the figures; how many promises were broken."""
    retention, keep = (QUICK_RETENTION_H, QUICK_KEEP_PUSHED_H) if quick else (RETENTION_H, KEEP_PUSHED_H)
    store = {"retention_h": retention, "keep_pushed_h": keep, "maintain_every_commits": 64 if quick else 256}
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        cluster, service = {"workers": 1}, {"replicas": 1}
        live = Live(Path(folder), every_s=EVERY_S, rate=2.0, store=store, cluster=cluster, service=service)
        report.say("starting a stream")
        with live:
            samples = list(_samples(report, live, minutes))
            found = [*live.drain(), *live.end()]
    for violation in found:
        report.say(f"[red]{violation.text}[/]")
    _figures(report, samples, minutes, live.feeder.pushes_confirmed, sum(v.kind == "lost" for v in found))
    return len(found)


def _samples(report: Measured, live: Live, minutes: float) -> Any:
    began = said = time.monotonic()
    while (now := time.monotonic()) - began < 60 * minutes:
        assert live.process is not None
        if live.process.has_ended:
            raise AssertionError(f"the stream ended by itself:\n{live.process.tail()}")
        sample = {
            "minute": round((now - began) / 60, 3),
            **_files(live.root),
            **_memory(live.process.pid),
        }
        report.row(part="soak", pushes=live.feeder.pushes_confirmed, learnt=live.watch.sight.learnt, **sample)
        if now - said > 30:
            said = now
            report.say(
                f"{sample}, {live.feeder.pushes_confirmed} pushes, {live.watch.sight.learnt} tasks learnt"
            )
        yield sample
        time.sleep(max(0.0, LOOK_S - (time.monotonic() - now)))


def _files(root: Path) -> Sample:
    logs = sum(_count(root / name / "_delta_log") for name in SCHEMAS)
    data = sum(_count(root / name) for name in SCHEMAS)
    return {"log_files": logs, "data_files": data, "push_files": _count(root / "push")}


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _memory(session: int) -> Sample:
    """MiB of all processes of the stream (`mb`), pages that they share counted once; and by what they are."""
    found: Sample = {"mb": 0.0}
    for pid in family_of(session):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().split(maxsplit=1)
        except OSError:
            continue  # ended meanwhile
        mb = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        name = words[0].partition(":search")[0] if words and words[0].startswith("ray::") else "other"
        role = (
            "replica"
            if name.startswith("ray::ServeReplica")
            else name.removeprefix("ray::").partition(".")[0]
        )
        for key in ("mb", f"mb_{role}"):
            found[key] = round(found.get(key, 0.0) + mb, 1)
    return found


def _figures(report: Measured, samples: list[Sample], minutes: float, pushes: int, lost: int) -> None:
    report.figure("minutes", minutes)
    report.figure("pushes", float(pushes))
    report.figure("lost", float(lost))
    for name in ("log_files", "data_files", "push_files"):
        middle, end = (_mean(samples, name, share, minutes) for share in ((0.4, 0.6), (0.8, 1.0)))
        report.figure(f"{name}_middle", middle)
        report.figure(f"{name}_end", end)
        if middle:
            report.figure(f"{name}_end_over_middle", end / middle)
    warm = [s for s in samples if s["minute"] >= WARM * minutes]
    slope = np.polyfit([s["minute"] / 60 for s in warm], [s["mb"] for s in warm], 1)[0]
    report.figure("rss_slope_mb_per_hour", float(slope))
    report.figure("rss_mb_end", samples[-1]["mb"])


def _mean(samples: list[Sample], name: str, share: tuple[float, float], minutes: float) -> float:
    first, last = share[0] * minutes, share[1] * minutes
    return fmean(s[name] for s in samples if first <= s["minute"] <= last)
