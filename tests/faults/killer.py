"""Seeded killers: each slot kills one role after the other, the next only when the last one has healed.

Slots are independent of each other and may have one kill in flight each.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.live import Live
from tests.faults.process import is_running, send
from tests.faults.roles import readers_among
from tests.faults.watch import Sight, wait_for

SLOTS: dict[str, dict[str, int]] = {
    "training": {"worker": 3, "rank_0": 3, "reader": 3, "train_controller": 1},
    "writing": {"driver": 1},
    "committing": {"crash_point": 1},
    "indexing": {"indexer": 1},
    "serving": {"replica": 5, "proxy": 1, "proxy_manager": 1, "serve_controller": 1},
}
HEAL_S = 300.0
WAIT_FOR_VICTIM_S = 15.0
WAIT_AT_POINT_S = 45.0
SUCCESSORS = {
    "driver": "driver", "indexer": "indexer", "replica": "replica", "worker": "worker", "rank_0": "worker"
}  # fmt: skip
"""Roles that are killed again on the way back, and what comes in their place (which rank is not known yet)."""
SUCCESSOR_LIVES_S = 1.5
POINTS = (
    "landed.before", "landed.after", "ingest.before", "ingest.after_gallery", "ingest.after_quarantine",
    "ingest.after_ledger", "close.before", "close.after", "attempt.before", "attempt.after", "stage.before",
    "stage.after_gallery", "stage.after_versions", "stage.after_ledger", "artifact.after", "file.before_rename",
    "maintain.before", "maintain.after_purge", "maintain.after_compaction", "maintain.after_vacuum",
)  # fmt: skip
"""Those that a stream without commands from people passes by itself."""


@dataclass
class Kill:
    """One kill and what became of it; times in seconds, None for what was never seen."""

    number: int
    slot: str
    role: str
    at_s: float
    victim: int = 0
    in_flight: tuple[str, ...] = ()
    heal_s: float | None = None
    heal_to_step_s: float | None = None
    verdict: str = ""
    point: str = ""
    killed_again: bool = False
    """What came in its place was killed before it had healed; that is the next kill of its slot."""


@dataclass
class Board:
    """What the slots share: numbers, rows, who is in flight, and when to end."""

    live: Live
    seed: int
    most: int
    began: float = field(default_factory=time.monotonic)
    kills: list[Kill] = field(default_factory=list)
    flying: dict[str, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held by a slot that kills alone."""
    say: Callable[[str], None] = print
    minutes: float = 0.0
    """How long the slots were at work."""

    def begin(self, slot: str, role: str) -> Kill | None:
        """A new row, or None when there are enough."""
        with self.lock:
            if len(self.kills) >= self.most or self.stop.is_set():
                return None
            others = tuple(sorted(self.flying.values()))
            kill = Kill(len(self.kills), slot, role, time.monotonic() - self.began, in_flight=others)
            self.kills.append(kill)
            self.flying[slot] = role
            return kill

    def end(self, kill: Kill) -> None:
        """Ask the oracle, and let the slot go on."""
        self.judge(kill)
        with self.lock:
            self.flying.pop(kill.slot, None)

    def judge(self, kill: Kill) -> None:
        """Ask the oracle."""
        found = self.live.check()
        kill.verdict = "; ".join(v.text for v in found) or kill.verdict or "ok"
        if kill.verdict != "ok":
            self.say(f"[red]seed {self.seed}, kill {kill.number} ({kill.role}): {kill.verdict}[/]")
            if found:
                self.stop.set()


class Slot(threading.Thread):
    """Kills roles of one slot until the board says stop. ``alone``: never while another slot's kill is healing;
    ``again``: share of kills after which what comes in the place of the killed is killed on its way, too."""

    def __init__(
        self,
        board: Board,
        name: str,
        pause_s: tuple[float, float],
        alone: bool,
        only: set[str],
        again: float = 0.0,
    ) -> None:
        super().__init__(name=f"killer-{name}", daemon=True)
        self.board, self.slot, self.pause_s, self.alone, self.again = board, name, pause_s, alone, again
        self._random = random.Random(f"{board.seed}/{name}")
        self._roles = [
            role for role, times in SLOTS[name].items() if not only or role in only for _ in range(times)
        ]
        self._bag: list[str] = []

    def run(self) -> None:
        while self._roles and not self.board.stop.wait(self._random.uniform(*self.pause_s)):
            if not self._bag:  # each role as often as its number says, before any comes again
                self._bag = self._random.sample(self._roles, len(self._roles))
            role = self._bag.pop()
            if not self.alone:
                self.strike(role)
                continue
            with self.board.turn:
                self.strike(role)

    def strike(self, role: str) -> None:
        """Kill, wait for the healing, ask the oracle."""
        prepared = self._prepare(role)
        if prepared is None or self.board.stop.is_set():
            return
        victim, point = prepared
        before = self.board.live.watch.sight
        names = self._replicas() if role == "replica" else set()
        kill = self.board.begin(self.slot, role)
        if kill is None:
            self.board.stop.set()
            return
        kill.victim, kill.point = victim, point
        if point:
            before = self._at_point(kill, before)
        else:
            send(victim, signal.SIGKILL)
            kill = self._strike_again(kill, before)
        if not kill.verdict:
            self._heal(kill, before, names)
        self.board.end(kill)

    def _strike_again(self, kill: Kill, before: Sight) -> Kill:
        """Kill what comes in the place of the killed, as often as chance wants it; the last kill."""
        role = SUCCESSORS.get(kill.role, "")
        known = before.cast.get(role, frozenset())
        while role and self._random.random() < self.again:
            victim = self._successor(role, known)
            following = self.board.begin(self.slot, role) if victim else None
            if following is None:
                break
            following.victim = victim
            send(victim, signal.SIGKILL)
            kill.killed_again = True
            self.board.judge(kill)
            kill, known = following, known | {victim}
        return kill

    def _successor(self, role: str, known: frozenset[int]) -> int:
        """A process of ``role`` that is none of the known, some instants after it came; 0 when none comes."""
        come: set[int] = set()

        def has_come() -> bool:
            come.update(self.board.live.watch.sight.cast.get(role, frozenset()) - known)
            return bool(come) or self.board.stop.is_set()

        wait_for(has_come, WAIT_FOR_VICTIM_S)
        time.sleep(self._random.uniform(0.0, SUCCESSOR_LIVES_S))
        return min((pid for pid in come if is_running(pid)), default=0)

    def _prepare(self, role: str) -> tuple[int, str] | None:
        """Whom to kill, and at which named point."""
        if role == "crash_point":
            return 0, self._random.choice(POINTS)
        found: list[int] = []

        def found_one() -> bool:
            found[:] = self._candidates(role)
            return bool(found) or self.board.stop.is_set()

        wait_for(found_one, WAIT_FOR_VICTIM_S, 0.002)
        return (self._random.choice(sorted(found)), "") if found else None

    def _candidates(self, role: str) -> list[int]:
        sight = self.board.live.watch.sight
        if role == "rank_0":
            return [sight.leader] if sight.leader in sight.cast.get("worker", ()) else []
        if role == "reader":
            return readers_among(sight.cast.get("idle", frozenset()) | sight.cast.get("reader", frozenset()))
        found = set(sight.cast.get(role, ()))
        if role == "worker":
            found.discard(sight.leader)
        return [pid for pid in found if is_running(pid)]

    def _replicas(self) -> set[str]:
        return {name for name in (self.board.live.status().get("replica") for _ in range(12)) if name}

    def _at_point(self, kill: Kill, before: Sight) -> Sight:
        """Order a death at the named point and wait for it."""
        order, watch = self.board.live.order, self.board.live.watch
        aside = order.with_suffix(".aside")
        aside.write_text(kill.point)
        aside.rename(order)
        seen = before

        def taken() -> bool:
            nonlocal seen
            if order.exists():
                seen = watch.sight
                return self.board.stop.is_set()
            return True

        if wait_for(taken, WAIT_AT_POINT_S, 0.01) is None or order.exists():
            order.unlink(missing_ok=True)
            kill.verdict = "not passed"
        kill.at_s = time.monotonic() - self.board.began
        return seen

    def _heal(self, kill: Kill, before: Sight, replicas: set[str]) -> None:
        began = time.monotonic()
        healed = self._condition(kill, before, replicas)
        kill.heal_s = wait_for(healed, HEAL_S)
        if kill.slot == "training" and kill.heal_s is not None:
            more = wait_for(lambda: self._has_stepped(kill.role, before), HEAL_S)
            kill.heal_to_step_s = None if more is None else time.monotonic() - began
        if kill.heal_s is None or (kill.slot == "training" and kill.heal_to_step_s is None):
            kill.verdict = f"not healed within {HEAL_S:.0f} s"

    def _condition(self, kill: Kill, before: Sight, replicas: set[str]) -> Callable[[], bool]:
        live = self.board.live
        if kill.slot in ("writing", "committing", "indexing"):
            name = land_surely(live)
            return lambda: name in live.watch.sight.indexed and self._replaced(kill, before)
        if kill.slot == "training":
            return lambda: self._has_returned(kill.role, before)
        if kill.role == "replica":
            return lambda: bool(live.status().get("replica", kill.role) not in {*replicas, kill.role})
        return lambda: self._replaced(kill, before) and all(live.is_ready() for _ in range(3))

    def _replaced(self, kill: Kill, before: Sight) -> bool:
        if kill.role == "crash_point":
            return True
        now = self.board.live.watch.sight.cast.get(kill.role, frozenset())
        return bool(now - before.cast.get(kill.role, frozenset())) and kill.victim not in now

    def _has_returned(self, role: str, before: Sight) -> bool:
        sight = self.board.live.watch.sight
        if role == "reader":  # rank 0 lives on: Ray Data starts the lost task again
            return (sight.stage, sight.step) != (before.stage, before.step) and sight.phase == "training"
        return sight.leader not in (0, before.leader) and sight.leader in sight.cast.get("worker", ())

    def _has_stepped(self, role: str, before: Sight) -> bool:
        sight = self.board.live.watch.sight
        return self._has_returned(role, before) and sight.phase == "training" and sight.step > 0


def land_surely(live: Live) -> str:
    """Land a shard, again and again while the disk refuses; its name."""
    while True:
        try:
            return live.feeder.land().name
        except OSError:  # the fault of the moment
            time.sleep(0.5)


def row(kill: Kill, **more: Any) -> dict[str, Any]:
    """A kill as the result file keeps it."""
    values = {**kill.__dict__, **more}
    return {
        k: round(v, 3) if isinstance(v, float) else v
        for k, v in values.items()
        if v not in (None, "", ()) and v is not False
    }
