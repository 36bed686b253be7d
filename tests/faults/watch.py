"""Eyes on a running stream: processes by role, the trainer's last word, and what the tables say."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import urllib.request
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

from deltalake.exceptions import DeltaError

from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store
from tests.faults.roles import Cast, cast_of

LOOK_S = 0.1
CAST_EVERY = 3
PREFIX = "stream_odml_"


@dataclass(frozen=True)
class Sight:
    """What was seen last. ``leader`` is the process id of rank 0; ``stage`` and ``step`` are of the running stage."""

    cast: Cast
    leader: int = 0
    workers: int = 0
    stage: int = 0
    step: int = 0
    steps: int = 0
    phase: str = ""
    epoch: int = 0
    indexed: frozenset[str] = frozenset()
    due_tasks: int = 0
    learnt: int = 0


class Watch:
    """A thread that looks ten times a second; :attr:`sight` is replaced, never changed."""

    def __init__(self, root: Path, metrics_port: int) -> None:
        self._root, self._metrics = root, f"http://127.0.0.1:{metrics_port}/metrics"
        self.sight = Sight({})
        self.session = 0
        """Process id of the stream's first process; 0 looks at none."""
        self._store: Store | None = None
        self._seq = (-1, -1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        for look in itertools.count():
            if self._stop.wait(LOOK_S):
                return
            cast = self.sight.cast
            if look % CAST_EVERY == 0:
                cast = cast_of(self.session) if self.session else {}
            self.sight = replace(self._tables(self._trainer(self.sight)), cast=cast)

    def _trainer(self, sight: Sight) -> Sight:
        try:
            with urllib.request.urlopen(self._metrics, timeout=1) as answer:
                text = answer.read().decode()
        except (
            OSError,
            ValueError,
            HTTPException,
        ):  # the driver is away, or died in the middle of its answer
            return sight
        return replace(sight, **_trainer_words(text))

    def _tables(self, sight: Sight) -> Sight:
        # A root that is read-only, full or away is the fault of the moment, or not made yet.
        with contextlib.suppress(OSError, NotAStreamRoot, DeltaError):
            self._store = self._store or Store.open(str(self._root))
            self._store.refresh()
            ledger, tree = self._store.ledger, self._store.tree
            if (ledger.seq, tree.seq) == self._seq:
                return sight
            self._seq = (ledger.seq, tree.seq)
            learnt = tree.learnt()
            return replace(
                sight,
                indexed=frozenset(s.name for s in ledger.shards.values() if s.indexed_seq is not None),
                due_tasks=len(ledger.due_tasks(learnt)),
                learnt=len(learnt),
                epoch=self._store.epoch,
            )
        return sight


def _trainer_words(text: str) -> dict[str, Any]:
    names = {"stage": "stage", "stage_step": "step", "stage_steps": "steps", "train_workers": "workers"}
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.removeprefix(PREFIX).rpartition(" ")
        if name in names:
            found[names[name]] = int(float(value))
        elif name.startswith("train_leader_info"):
            found["leader"] = int(name.rpartition(":")[2].rstrip('"}'))
        elif name.startswith("phase{") and float(value) == 1:
            found["phase"] = name.partition('"')[2].rstrip('"}')
    return found


def wait_for(condition: object, timeout_s: float, every_s: float = 0.05) -> float | None:
    """Seconds until ``condition()`` held, or None when it never did."""
    assert callable(condition)
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        if condition():
            return time.monotonic() - began
        time.sleep(every_s)
    return None
