"""Two streams on one machine, both under fault: neither ever answers for the other, takes its pushes, or loses one.

Each stream has one replica, so that there is often nobody at its address but what the other stream left open. A prober
that trusts no name pushes to each address and notes which stream every answer names.
"""

from __future__ import annotations

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from stream_odml.store.store import Store
from tests.faults.campaign import Plan, kill_for
from tests.faults.feeder import picture
from tests.faults.killer import Board, row
from tests.faults.live import Live
from tests.faults.oracle import Violation
from tests.measured import Measured

NAMES = ("left", "right")
PROBE_S = 0.3
STREAM_HEADER = "X-Stream-Id"
SMALL: dict[str, Any] = {"cluster": {"workers": 1}, "service": {"replicas": 1}}


class Prober:
    """Pushes one image after the other to the address of ``live``, and counts answers that name another stream."""

    def __init__(self, name: str, live: Live) -> None:
        self._name, self._live = name, live
        self._own = Store.id_of(str(live.root))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answered = self.crossed = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(PROBE_S):
            number += 1
            self._push(f"{self._name}-{number:05d}")

    def _push(self, item: str) -> None:
        kind = f"of-{self._name}"
        self._live.truth.offer({item: kind})
        try:
            answer = httpx.post(
                f"{self._live.url}/v1/items",
                files={"image": ("a.png", picture(kind, 0), "image/png")},
                data={"class": kind, "id": item},
                timeout=5,
            )
        except httpx.HTTPError:
            return
        self.answered += 1
        self.crossed += answer.headers.get(STREAM_HEADER, self._own) != self._own
        if answer.status_code == 202:
            self._live.truth.confirm(answer.json()["shard"], {item: kind})


def run(report: Measured, seed: int, plan: Plan) -> int:
    """One campaign against both streams; how many items or answers crossed, or were lost."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, ExitStack() as stack:
        report.say("starting two streams")
        lives = [stack.enter_context(_live(Path(folder) / name)) for name in NAMES]
        boards = [Board(live, seed + i, plan.kills, say=report.say) for i, live in enumerate(lives)]
        probers = [Prober(name, live) for name, live in zip(NAMES, lives, strict=True)]
        for prober in probers:
            prober.start()
        with ThreadPoolExecutor(len(boards)) as pool:
            list(pool.map(lambda board: kill_for(board, plan, report), boards))
        for prober in probers:
            prober.stop()
        report.say("no more kills; waiting for what is on its way")
        time.sleep(1.0)
        found = [live.drain() for live in lives]
        for name, live, board, prober, broken in zip(NAMES, lives, boards, probers, found, strict=True):
            foreign = _foreign(live, name)
            report.row(
                part="neighbours",
                stream=name,
                kills=len(board.kills),
                not_healed=sum(kill.verdict.startswith("not healed") for kill in board.kills),
                answered=prober.answered,
                crossed=prober.crossed + len(foreign),
                lost=_lost(broken),
                violations=[v.text for v in broken][:20],
            )
            for kill in board.kills:
                report.row(part="neighbours", stream=name, seed=seed, **row(kill))
    return _figures(report)


def _live(folder: Path) -> Live:
    folder.mkdir()
    return Live(folder, every_s=2.0, rate=2.0, **SMALL)


def _foreign(live: Live, name: str) -> list[str]:
    """Items of the other stream's prober in this stream's gallery."""
    others = tuple(f"{other}-" for other in NAMES if other != name)
    items = Store.open(str(live.root)).gallery_rows(vectors=False)["item_id"].to_pylist()
    return [item for item in items if item.startswith(others)]


def _lost(found: list[Violation]) -> int:
    return sum(violation.kind == "lost" for violation in found)


def _figures(report: Measured) -> int:
    sums = [row for row in report.rows if row.get("part") == "neighbours" and "answered" in row]
    figures = {name: sum(row[name] for row in sums) for name in ("kills", "crossed", "lost", "not_healed")}
    for name, value in figures.items():
        report.figure(name, value)
    return int(figures["crossed"] + figures["lost"])
