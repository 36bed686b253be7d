"""A stage that is killed at several steps ends in the same bits as one that is left alone.

On a CPU, with the same world size: every step is a function of state, batch, seed and step, and so is the end.
"""

from __future__ import annotations

import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stream_odml.learn.bank import ClassBank
from stream_odml.store.artifacts import BANK, STUDENT
from stream_odml.store.store import Store
from tests.faults.feeder import Feeder
from tests.faults.live import stream_yaml
from tests.faults.process import StreamProcess, send
from tests.faults.truth import Truth
from tests.faults.watch import Watch, wait_for

SHARDS = 6
HOW = ("rank_0", "worker", "tree")


@dataclass(frozen=True)
class Interruption:
    """Who was killed at which step of which stage, and at which step the stage went on."""

    how: str
    stage: int
    step: int
    resumed_at: int


def learn(folder: Path, kill_at: tuple[float, ...] = (), steps: int = 200) -> tuple[Path, list[Interruption]]:
    """Learn two tasks of three shards; kill at these shares of each stage. Returns root and what was done."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "root"
    config = stream_yaml(
        folder / "stream.yaml",
        root,
        learning={"base_steps": steps, "stage_steps": steps},
        cluster={"serve": False, "checkpoint_s": 0.2},
    )
    feeder = Feeder(root / "inbox", lambda: "", Truth(), 1.0, lambda: 1000)
    for _ in range(SHARDS):
        feeder.land()
        time.sleep(0.02)  # the order of landing is that of the files' times
    watch = Watch(root, yaml.safe_load(config.read_text())["metrics"]["port"])
    watch.start()
    done = []
    process = StreamProcess(config, "--until-idle", "3")
    try:
        for number, share in enumerate((stage, share) for stage in (1, 2) for share in kill_at):
            watch.session = process.pid
            process, happened = _interrupt(watch, process, config, share, HOW[number % len(HOW)])
            done.append(happened)
        if process.wait(300):
            raise AssertionError(process.tail())
    finally:
        watch.stop()
        process.kill_tree()
    return root, done


def _interrupt(
    watch: Watch, process: StreamProcess, config: Path, at: tuple[int, float], how: str
) -> tuple[StreamProcess, Interruption]:
    stage, share = at

    def is_there() -> bool:
        sight = watch.sight
        return sight.stage == stage and sight.phase == "training" and sight.step >= share * sight.steps > 0

    if wait_for(is_there, 200, 0.01) is None:
        raise AssertionError(f"stage {stage} never came to {share}: {watch.sight}\n{process.tail()}")
    before = watch.sight
    if how == "tree":
        process.kill_tree()
        process = StreamProcess(config, "--until-idle", "3")
        watch.session = process.pid
    else:
        others = before.cast.get("worker", frozenset()) - {before.leader}
        send(before.leader if how == "rank_0" else min(others), signal.SIGKILL)

    def goes_on() -> bool:
        sight = watch.sight
        return sight.leader not in (0, before.leader) and sight.phase == "training" and sight.step > 0

    if wait_for(goes_on, 200, 0.005) is None:
        raise AssertionError(f"stage {stage} did not go on: {watch.sight}\n{process.tail()}")
    return process, Interruption(how, stage, before.step, watch.sight.step)


def fingerprint(root: Path) -> list[dict[str, Any]]:
    """Of each version: task and hashes of its artifacts. Version ids are random: a bank's are numbered instead."""
    store = Store.open(str(root))
    line = store.tree.lineage(store.tree.head)
    found = []
    for version in line:
        known = store.tree.get(version)
        hashes = {name: ref.sha256 for name, ref in known.artifacts.items() if name != BANK}
        if BANK in known.artifacts:
            bank = ClassBank.from_bytes(store.artifact(version, BANK))
            keys = [(name, line.index(birth)) for name, birth in bank.keys]
            arrays = (bank.counts, bank.origin_means, bank.means, bank.directions)
            hashes[BANK] = _digest(repr(keys).encode() + b"".join(array.tobytes() for array in arrays))
        found.append({"task": known.task, **hashes})
    return found


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def compare(kill_at: tuple[float, ...] = (0.2, 0.5, 0.8)) -> dict[str, Any]:
    """Learn the same stream twice, once undisturbed; a row that says whether both came to the same bits."""
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        calm, _ = learn(Path(folder) / "calm")
        killed, done = learn(Path(folder) / "killed", kill_at)
        expected, seen = fingerprint(calm), fingerprint(killed)
        return {
            "part": "resume",
            "identical": expected == seen and len(expected) == 3,
            "versions": len(seen),
            "student": [version[STUDENT] for version in seen],
            "student_undisturbed": [version[STUDENT] for version in expected],
            "interruptions": [vars(happened) for happened in done],
        }
