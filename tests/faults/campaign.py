"""One stream, many kills: the slots at work for some minutes, then all of it at once, then the last reckoning."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.asker import Question, availability
from tests.faults.killer import HEAL_S, SLOTS, Board, Kill, Slot, row
from tests.faults.live import Live
from tests.faults.oracle import KINDS, Violation
from tests.faults.others import Others
from tests.faults.process import family_of, send
from tests.faults.watch import wait_for
from tests.measured import Measured

APART = ("tree", "raylet", "gcs")
"""What ends the whole stream: a supervisor starts the same command again."""
EXIT_S = 300.0
FIGURES = {
    "lost": "shards_lost",
    "learnt_twice": "learnt_twice",
    "indexed_twice": "indexed_twice",
    "phantom": "phantom_items",
    "disagree": "disagreements",
}


@dataclass(frozen=True)
class Plan:
    """How much of what."""

    kills: int
    minutes: float
    only: frozenset[str]
    alone: bool
    apart: int
    pause_s: tuple[float, float]
    rate: float
    again: float = 0.0
    """Share of kills after which what comes in the place of the killed is killed, too."""
    quiet: bool = False
    """Nothing else runs on the machine, so that times count."""


def run(report: Measured, seed: int, plan: Plan) -> list[Violation]:
    """One campaign with one seed: rows and figures of ``report``; returns what was broken."""
    part = f"seed-{seed}"
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        report.say(f"seed {seed}: starting a stream")
        with Live(Path(folder), rate=plan.rate) as live:
            board = Board(live, seed, plan.kills, say=report.say)
            others = kill_for(board, plan, report)
            apart = list(_apart(board, plan, report))
            report.say("no more kills; waiting for what is on its way")
            found = [*live.drain(), *live.end()]
            for kill in [*board.kills, *apart]:
                report.row(part=part, seed=seed, **row(kill), **({"quiet": True} if plan.quiet else {}))
            _summary(report, part, live, board, plan, found, others)
        broken = [k for k in [*board.kills, *apart] if k.verdict not in ("ok", "not passed")]
        found += [Violation("disagree", f"kill {k.number} of {k.role}: {k.verdict}") for k in broken]
        for violation in found:
            report.say(f"[red]seed {seed}, end: {violation.text}[/]")
        return found


def kill_for(board: Board, plan: Plan, report: Measured) -> Others:
    """Let all slots kill until there were enough; who else used the machine meanwhile."""
    slots = [Slot(board, name, plan.pause_s, plan.alone, set(plan.only), plan.again) for name in SLOTS]
    for slot in slots:
        slot.start()
    until = time.monotonic() + 60 * plan.minutes
    said, others = time.monotonic(), Others()
    while time.monotonic() < until and any(slot.is_alive() for slot in slots) and not board.stop.is_set():
        time.sleep(0.5)
        others.look([os.getpid(), *family_of(board.live.watch.session)])
        if board.live.process is not None and board.live.process.has_ended:
            report.say(f"[red]the stream ended by itself:\n{board.live.process.tail()}[/]")
            break
        if time.monotonic() - said > 20:
            said = time.monotonic()
            report.say(f"{len(board.kills)} kills, {board.live.watch.sight.learnt} tasks learnt")
    board.minutes = (time.monotonic() - board.began) / 60
    board.stop.set()
    for slot in slots:
        slot.join(timeout=3 * HEAL_S)
    return others


def _apart(board: Board, plan: Plan, report: Measured) -> Iterable[Kill]:
    chosen = random.Random(f"{board.seed}/apart")
    live = board.live
    for number in range(plan.apart):
        role = APART[number % len(APART)] if number < len(APART) else chosen.choice(APART)
        if plan.only and role not in plan.only:
            continue
        time.sleep(chosen.uniform(0.5, 4.0))
        kill = Kill(len(board.kills) + number, "apart", role, time.monotonic() - board.began)
        began = time.monotonic()
        if not _end(live, role):
            kill.verdict = f"the stream did not end within {EXIT_S:.0f} s of its {role}"
        live.start()
        name = live.feeder.land().name
        live.ready()
        wait_for(lambda name=name: name in live.watch.sight.indexed, HEAL_S)
        kill.heal_s = time.monotonic() - began
        kill.verdict = "; ".join(v.text for v in live.check()) or kill.verdict or "ok"
        report.say(f"{role}: {kill.heal_s:.1f} s, {kill.verdict}")
        yield kill


def _end(live: Live, role: str) -> bool:
    """Kill what everything hangs on, and wait until the stream's own process has noticed."""
    assert live.process is not None
    ended: float | None = 0.0
    if role != "tree":
        for pid in live.watch.sight.cast.get(role, ()):
            send(pid, signal.SIGKILL)
        process = live.process
        ended = wait_for(lambda: process.has_ended, EXIT_S)
    live.process.kill_tree()
    return ended is not None


def _summary(
    report: Measured, part: str, live: Live, board: Board, plan: Plan, found: list[Violation], others: Others
) -> None:
    """A row of sums, from which the figures of several runs are made."""
    by_kind = {FIGURES[kind]: sum(v.kind == kind for v in found) for kind in KINDS}
    questions: list[Question] = live.asker.questions
    report.row(
        part=part,
        sums=True,
        only=sorted(plan.only),
        alone=plan.alone,
        quiet=plan.quiet,
        others_cores=others.cores,
        kills=len(board.kills),
        minutes=round(board.minutes, 2),
        **by_kind,
        violations=[v.text for v in found][:20],
        shards=len(live.truth.shards),
        pushes=live.feeder.pushes_confirmed,
        tasks=live.watch.sight.learnt,
        questions=len(questions),
        answered_first=sum(q.attempt == 1 for q in questions),
        answered_second=sum(q.attempt == 2 for q in questions),
        slowest_s=max((q.seconds for q in questions if q.attempt), default=None),
        problems=_problems(questions),
    )
    report.say(f"asked {len(questions)}, with one retry {availability(questions, 2)}")


def _problems(questions: list[Question]) -> dict[str, int]:
    found: dict[str, int] = {}
    for question in questions:
        if question.problem:
            key = f"{question.problem}{'' if question.attempt else ', again'}"
            found[key] = found.get(key, 0) + 1
    return found
