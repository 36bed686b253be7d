"""What comes in the place of a killed process is killed on its way, each kill has a row, and the last one heals."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import killer
from tests.faults.killer import Board, Slot, row
from tests.faults.watch import Sight


class Stream:
    """A driver that is started anew ``lives`` times; what lands is indexed while one lives."""

    def __init__(self, lives: int) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.watch = SimpleNamespace(sight=Sight({}))
        self.feeder = SimpleNamespace(land=lambda: SimpleNamespace(name="shard"))
        self._lives = lives
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while len(self.processes) < self._lives:
            process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            self.processes.append(process)
            cast = {"driver": frozenset({process.pid})}
            self.watch.sight = Sight(cast, indexed=frozenset({"shard"}))
            process.wait()

    def close(self) -> None:
        """End what lives."""
        self._lives = 0
        for process in self.processes:
            process.kill()
            process.wait()

    def check(self) -> list[Any]:
        """The oracle is content."""
        return []


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    monkeypatch.setattr(killer, "WAIT_FOR_VICTIM_S", 0.5)
    monkeypatch.setattr(killer, "SUCCESSOR_LIVES_S", 0.05)
    made = Stream(lives=3)
    yield made
    made.close()


def test_each_successor_is_killed_until_chance_wants_no_more(stream: Stream) -> None:
    board = Board(stream, seed=0, most=10, say=lambda text: None)  # type: ignore[arg-type]
    slot = Slot(board, "writing", (0.0, 0.0), alone=False, only=set(), again=1.0)
    chances = iter([0.0, 0.0, 2.0])  # once more, at once, then not
    slot._random.random = lambda: next(chances)  # type: ignore[method-assign]
    slot.strike("driver")
    assert [kill.victim for kill in board.kills] == [process.pid for process in stream.processes[:2]]
    assert [kill.killed_again for kill in board.kills] == [True, False]
    assert [kill.verdict for kill in board.kills] == ["ok", "ok"]
    assert [kill.heal_s is None for kill in board.kills] == [True, False]
    assert "heal_s" not in row(board.kills[0])
    assert row(board.kills[0])["number"] == 0
    assert not board.flying


def test_the_most_kills_that_were_asked_for_are_not_exceeded(stream: Stream) -> None:
    board = Board(stream, seed=0, most=1, say=lambda text: None)  # type: ignore[arg-type]
    slot = Slot(board, "writing", (0.0, 0.0), alone=False, only=set(), again=1.0)
    slot.strike("driver")
    assert [(kill.killed_again, kill.verdict) for kill in board.kills] == [(False, "ok")]
    assert len(stream.processes) == 2
