"""A stream under fault with all around it: its process, its producers, its client, its watcher."""

from __future__ import annotations

import contextlib
import json
import tempfile
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import yaml

from stream_odml.cluster.runtime import free_port
from stream_odml.storage.crashpoints import ORDER
from stream_odml.store.store import Store
from tests.faults.asker import Asker
from tests.faults.feeder import CLASSES, Feeder
from tests.faults.oracle import Violation, violations
from tests.faults.process import StreamProcess, descendants, survivors
from tests.faults.truth import Truth
from tests.faults.watch import Watch, wait_for

START_S = 240.0
SHARDS_A_TASK = 3
LOOKS = 20
END_S = 240.0
METHOD = "distilled"
"""Trains a while in every stage, in which it can be hurt."""


def stream_yaml(path: Path, root: Path, **changes: Mapping[str, Any]) -> Path:
    """A small stream with two training workers and two replicas, that learns a task of three shards in seconds."""
    config: dict[str, dict[str, Any]] = {
        "model": {"dim": 16, "image_size": 16},
        "learning": {"base_steps": 50, "stage_steps": 50, "classes_per_batch": 8, "images_per_class": 2},
        "boundary": {"new_classes": SHARDS_A_TASK * CLASSES, "images": None, "age_s": None},
        "gate": {"enabled": False},
        "store": {"maintain_every_rows": 80, "retention_h": 0.0, "lease_s": 10},
        "cluster": {"cpus": 2, "workers": 2, "checkpoint_s": 1.0},
        "service": {"port": free_port(), "replicas": 2, "num_cpus": 0.1},
        "metrics": {"port": free_port()},
    }
    for section, more in changes.items():
        config[section] = {**config.get(section, {}), **more}
    path.write_text(yaml.safe_dump({"name": "faults", "root": str(root), "method": METHOD, **config}))
    return path


class Live:
    """Use as a context: everything of it ends with the block."""

    def __init__(
        self, folder: Path, root: Path | None = None, every_s: float = 1.0, rate: float = 10.0, **changes: Any
    ) -> None:
        self.root = root or folder / "root"
        self.config = stream_yaml(folder / "stream.yaml", self.root, **changes)
        reported = yaml.safe_load(self.config.read_text())
        self.order = folder / "crash-order"
        self.environment: dict[str, str] = {ORDER: str(self.order)}
        self.truth = Truth()
        self.url = f"http://127.0.0.1:{reported['service']['port']}"
        self.watch = Watch(self.root, reported["metrics"]["port"])
        self.feeder = Feeder(self.root / "inbox", lambda: self.url, self.truth, every_s, self._classes)
        self.asker = Asker(lambda: self.url, rate)
        self.process: StreamProcess | None = None

    def __enter__(self) -> Live:
        self.start()
        self.watch.start()
        self.feeder.start()
        try:
            self.ready()
        except BaseException:
            self.__exit__()
            raise
        self.asker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.feeder.stop()
        self.watch.stop()
        if self.process is not None:
            self.process.kill_tree()

    def _classes(self) -> int:
        """So many that one or two tasks wait to be learnt: a stage is always at work, and the end is near."""
        return (self.watch.sight.learnt + 3) * SHARDS_A_TASK * CLASSES

    def start(self) -> None:
        """Start the stream's process (again), as an operator or a supervisor would: by the same command."""
        self.process = StreamProcess(self.config, environment=self.environment)
        self.watch.session = self.process.pid

    def ready(self, timeout_s: float = START_S) -> None:
        """Wait until the service answers and a stage is being learnt. Raises AssertionError."""
        if wait_for(self.is_ready, timeout_s) is None or wait_for(self.is_training, timeout_s) is None:
            assert self.process is not None
            raise AssertionError(f"the stream did not start: {self.watch.sight}\n{self.process.tail()}")

    def is_ready(self) -> bool:
        """Whether the service would answer a question."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, HTTPException):
            return False

    def is_training(self) -> bool:
        """Whether a stage has made a step."""
        return self.watch.sight.phase == "training" and self.watch.sight.step > 0

    def status(self) -> dict[str, Any]:
        """What one of the replicas says; empty when none does."""
        try:
            with urllib.request.urlopen(f"{self.url}/v1/status", timeout=2) as answer:
                reported: dict[str, Any] = json.load(answer)
                return reported
        except (OSError, ValueError, HTTPException):
            return {}

    def check(self, final: bool = False, learnt: bool = True) -> list[Violation]:
        """The oracle, now; its picture of what was confirmed is older than its picture of the store."""
        for _ in range(LOOKS):
            truth = self.truth.seen()
            # Nothing is retained here, so a file that was listed may be merged and gone before it is read.
            with contextlib.suppress(FileNotFoundError):
                store = Store.open(str(self.root))
                truth.tried = self.truth.seen().tried  # offered before it can be seen in the store
                return violations(store, truth, final, learnt)
        return [Violation("disagree", f"the tables lacked files that they name, {LOOKS} times in a row")]

    def drain(self, timeout_s: float = 600.0) -> list[Violation]:
        """End the producers, wait until all of it is indexed and what is due is learnt, and ask the oracle; then
        whether the service shows just that."""
        self.feeder.stop()
        landed = set(self.truth.shards)
        calm = wait_for(
            lambda: landed <= self.watch.sight.indexed and not self.watch.sight.due_tasks, timeout_s
        )
        self.asker.stop()
        found = self.check(final=True)
        if calm is None:
            sight = self.watch.sight
            late = sorted(landed - sight.indexed)[:3]
            found.append(Violation("lost", f"after {timeout_s:.0f} s: {late}, {sight.due_tasks} tasks due"))
        return found + self._served()

    def end(self) -> list[Violation]:
        """Ctrl-C: the stream ends by itself, in good order, and leaves no process and no file behind."""
        assert self.process is not None
        pid, below = self.process.pid, list(descendants(self.process.pid))
        self.process.interrupt()
        found = []
        try:
            if (code := self.process.wait(END_S)) != 0:
                found.append(f"Ctrl-C ended the stream with code {code}: {self.process.tail()[-500:]}")
        except AssertionError as error:
            found.append(f"after Ctrl-C it is {str(error)[-500:]}")
        found += [f"{name} is left behind" for name in survivors(below, within_s=10)]
        found += [f"{path} is left behind" for path in Path(tempfile.gettempdir()).glob(f"odml-{pid}-*")]
        return [Violation("disagree", text) for text in found]

    def _served(self) -> list[Violation]:
        """The index of the service holds as many items as the tables."""
        store = Store.open(str(self.root))
        from stream_odml.search.snapshot import GallerySnapshot

        items = len(GallerySnapshot.load(store))
        if wait_for(lambda: self.status().get("items") == items, 60.0) is not None:
            return []
        return [Violation("disagree", f"the tables hold {items} items, served {self.status().get('items')}")]
