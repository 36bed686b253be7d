"""Faults that kill nobody: frozen processes, a full or read-only or slow disk, a wall clock that jumps.

The stream's root is a small tmpfs of its own. Each fault is begun, held for some seconds, ended; then the time until
the stream does all of its work again is taken, and the oracle asked.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.killer import land_surely
from tests.faults.live import Live
from tests.faults.process import send
from tests.faults.watch import Sight, wait_for
from tests.measured import Measured

SIZE = "256m"
FSYNC_MS = 300
JUMP_S = 7200
HEAL_S = 90.0
Fault = Callable[["Place", float], None]


class Place:
    """A live stream whose root lies on a tmpfs of its own and whose processes carry the shim."""

    def __init__(self, folder: Path, live: Live, disk: Path, shim: Path | None) -> None:
        self.folder, self.live, self.disk, self.shim = folder, live, disk, shim

    def one(self, role: str) -> int:
        """A process of a role; waits until there is one. Raises AssertionError."""
        found: frozenset[int] = frozenset()

        def has_come() -> bool:
            nonlocal found
            sight = self.live.watch.sight
            workers = sight.cast.get("worker", frozenset())
            if role in ("rank_0", "worker"):
                found = workers & {sight.leader} if role == "rank_0" else workers - {sight.leader}
            else:
                found = sight.cast.get(role, frozenset())
            return bool(found)

        if wait_for(has_come, HEAL_S) is None:
            raise AssertionError(f"no {role} came in {HEAL_S:.0f} s: {self.live.watch.sight}")
        return min(found)


def _stopped(role: str) -> Fault:
    def fault(place: Place, hold_s: float) -> None:
        pid = place.one(role)
        send(pid, signal.SIGSTOP)
        time.sleep(hold_s)
        send(pid, signal.SIGCONT)

    return fault


def full_disk(place: Place, hold_s: float) -> None:
    """Not a byte is left, again and again as something is freed."""
    filler = place.disk / "filler"
    until = time.monotonic() + hold_s
    with filler.open("ab", buffering=0) as file:
        while time.monotonic() < until:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass
            time.sleep(0.05)
    filler.unlink()


def read_only(place: Place, hold_s: float) -> None:
    """The disk is remounted read-only, as Linux does after an error of it."""
    deadline = time.monotonic() + 10
    while _mount("-o", "remount,ro", str(place.disk)) and time.monotonic() < deadline:
        time.sleep(0.02)  # busy: somebody writes at this instant
    time.sleep(hold_s)
    _mount("-o", "remount,rw", str(place.disk))


def slow_fsync(place: Place, hold_s: float) -> None:
    """Each fsync of any process takes a third of a second."""
    assert place.shim is not None
    reported = place.folder / "shim" / "fsync_ms"
    reported.write_text(str(FSYNC_MS))
    time.sleep(hold_s)
    reported.unlink()


def clock_forward(place: Place, hold_s: float) -> None:
    """The wall clock of every process is set forward, and stays so."""
    (place.folder / "shim" / "clock").write_text(str(JUMP_S))
    time.sleep(hold_s)


def clock_back(place: Place, hold_s: float) -> None:
    """And back again: Ray's timers stand still, so the stream ends with a message, and a supervisor starts it."""
    (place.folder / "shim" / "clock").write_text("0")
    time.sleep(hold_s)


def _clock_of_driver(offset_s: int) -> Fault:
    def fault(place: Place, hold_s: float) -> None:
        reported = place.folder / "shim" / f"clock-{place.one('driver')}"
        reported.write_text(str(offset_s))
        time.sleep(hold_s)
        reported.unlink()

    return fault


FAULTS: dict[str, Fault] = {
    "stop_driver": _stopped("driver"),
    "stop_worker": _stopped("worker"),
    "stop_rank_0": _stopped("rank_0"),
    "stop_indexer": _stopped("indexer"),
    "stop_replica": _stopped("replica"),
    "full_disk": full_disk,
    "read_only": read_only,
    "slow_fsync": slow_fsync,
    "driver_clock_forward": _clock_of_driver(JUMP_S),
    "driver_clock_back": _clock_of_driver(-JUMP_S),
    "clock_forward": clock_forward,
    "clock_back": clock_back,
}
LAST = ("clock_forward", "clock_back")
"""In this order, and nothing after them: the clock is set forward once, and back once."""
NEED_SHIM = ("slow_fsync", "driver_clock_forward", "driver_clock_back", "clock_forward", "clock_back")
NEED_ROOT = ("full_disk", "read_only")


def run(report: Measured, seed: int, names: list[str], hold_s: float) -> int:
    """Each of ``names`` once, in an order that the seed chooses; how many promises were broken."""
    chosen = [name for name in FAULTS if not names or name in names]
    random.Random(seed).shuffle(chosen)
    chosen.sort(key=lambda name: LAST.index(name) if name in LAST else -1)
    broken = 0
    with place() as here:
        for name in chosen:
            why = _impossible(name, here)
            if why:
                report.say(f"NOT CHECKED: {name}: {why}")
                continue
            row = _suffer(here, name, hold_s)
            broken += row["verdict"] != "ok"
            report.row(part=f"environment-{seed}", seed=seed, fault=name, **row)
            report.say(f"{name}: {row}")
        found = here.live.drain()
        report.row(
            part=f"environment-{seed}",
            seed=seed,
            fault="all",
            verdict="; ".join(v.text for v in found) or "ok",
        )
        report.say(f"after all of them: {[v.text for v in found] or 'ok'}")
        return broken + len(found)


def _impossible(name: str, here: Place) -> str:
    if name in NEED_SHIM and here.shim is None:
        return "no C compiler for the shim"
    return "needs root for a tmpfs" if name in NEED_ROOT and os.geteuid() else ""


def _suffer(here: Place, name: str, hold_s: float) -> dict[str, Any]:
    live = here.live
    asked, refused = len(live.asker.questions), live.feeder.full
    began = time.monotonic()
    FAULTS[name](here, hold_s)
    ended, after = time.monotonic(), live.watch.sight
    shard = land_surely(live)
    again = False

    def has_healed() -> bool:
        nonlocal again
        again = _start_again(live) or again
        return shard in live.watch.sight.indexed and live.is_ready()

    healed = wait_for(has_healed, HEAL_S)
    heal_s = None if healed is None else time.monotonic() - ended
    stepped = wait_for(lambda: _has_stepped(live.watch.sight, after), HEAL_S)
    to_step_s = None if stepped is None else time.monotonic() - ended
    found = [violation.text for violation in live.check()]
    if heal_s is None or to_step_s is None:
        found.append(f"not healed in {HEAL_S:.0f} s")
    questions = live.asker.questions[asked:]
    return {
        "held_s": round(ended - began, 2),
        "heal_s": None if heal_s is None else round(heal_s, 2),
        "heal_to_step_s": None if to_step_s is None else round(to_step_s, 2),
        "questions": len(questions),
        "unanswered": sum(q.attempt == 0 for q in questions),
        "landings_refused": live.feeder.full - refused,
        "started_again": again,
        "verdict": "; ".join(found) or "ok",
    }


def _start_again(live: Live) -> bool:
    """What a supervisor does: start the same command when the stream has ended with a message."""
    assert live.process is not None
    if not live.process.has_ended:
        return False
    live.process.kill_tree()
    live.start()
    live.ready()
    return True


def _has_stepped(now: Sight, before: Sight) -> bool:
    """Whether a step was made that had not been made before."""
    return (now.stage, now.step) > (before.stage, before.step) and now.phase == "training"


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """The stream on its own disk."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        disk, shim = folder / "disk", build_shim(folder)
        disk.mkdir()
        mounted = os.geteuid() == 0 and not _mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk))
        try:
            live = Live(folder, root=disk / "root")
            if shim is not None:
                live.environment |= shimmed(shim)
            with live:
                yield Place(folder, live, disk, shim)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=False)


def build_shim(folder: Path) -> Path | None:
    """The library to preload, which obeys the files in ``folder``/shim; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    (folder / "shim").mkdir()
    if compiler is None:
        return None
    target = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(target), str(source), "-ldl"], check=True)
    return target


def shimmed(shim: Path) -> dict[str, str]:
    """Environment of a process that carries the shim."""
    return {"LD_PRELOAD": str(shim), "FAULTS_SHIM": str(shim.with_name("shim"))}


def _mount(*words: str) -> int:
    return subprocess.run(["mount", *words], check=False, capture_output=True).returncode
