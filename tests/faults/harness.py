"""A stream as a user runs it, in a process of its own that can be killed with everything it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from stream_odml.gallery.store import Store
from stream_odml.stream.glyphs import glyph_categories
from stream_odml.stream.landing import NewItem, land_items

CATEGORIES, IMAGES = 4, 6


def small_config(root: Path, place: str | None = None, **changes: Any) -> Path:
    """A stream that learns a task of three shards in seconds, without serving; returns its YAML file.

    ``place``: the stream root, when it is no local folder; the file is put beside ``root`` all the same.
    """
    config: dict[str, Any] = {
        "name": "faults",
        "root": place or str(root),
        "model": {"dim": 16, "image_size": 16},
        "learning": {"base_steps": 12, "stage_steps": 12, "classes_per_batch": 8, "images_per_class": 2},
        "boundary": {"new_classes": 3 * CATEGORIES, "images": None, "age_s": None},
        "gate": {"enabled": False},
        "evaluation": {"held_out": 0.2},
        "cluster": {"serve": False, "checkpoint_s": 0.5},
        "service": {"port": 0},
        "metrics": {"port": 0},
    } | changes
    path = root.parent / f"{root.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def land_shards(root: Path, count: int, first: int = 0) -> dict[str, str]:
    """Land ``count`` shards of glyphs; returns the class of every item, by id."""
    landed: dict[str, str] = {}
    glyphs = glyph_categories(0, images=IMAGES, size=20, start=first * CATEGORIES)
    for number in range(first, first + count):
        items = [
            NewItem(image, category.class_name, item_id=f"{number}/{i}/{j}")
            for i, category in enumerate(islice(glyphs, CATEGORIES))
            for j, image in enumerate(category.images)
        ]
        land_items(root / "inbox", f"shard-{number:03d}", items)
        landed |= {str(item.item_id): item.class_name for item in items}
    return landed


class StreamProcess:
    """`stream-odml run` in a session of its own."""

    def __init__(self, config: Path, crash_at: str | None = None, idle_s: float = 3.0) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if crash_at is not None:
            environment["STREAM_ODML_CRASH_AT"] = crash_at
        command = [sys.executable, "-m", "stream_odml.cli", "run", str(config), "--until-idle", str(idle_s)]
        self.output = config.with_suffix(".log")
        with self.output.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> StreamProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_tree()

    @property
    def pid(self) -> int:
        """Of the process that started all others."""
        return self._process.pid

    def wait(self, timeout_s: float = 180.0) -> int:
        """The exit code, when it ended by itself."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.tail()}") from None

    def tail(self) -> str:
        """The end of its output."""
        return self.output.read_text(errors="replace")[-3000:]

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def kill_tree(self) -> None:
        """SIGKILL the process and all that descends from it, at one instant."""
        pids = [self._process.pid, *descendants(self._process.pid)]
        for sign in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none can start another
            for pid in pids:
                _signal(pid, sign)
        self._process.wait(30)

    def until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Wait until ``condition`` holds, every 20 ms."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"the condition never held:\n{self.tail()}")
            time.sleep(0.02)


def descendants(pid: int) -> Iterator[int]:
    """Ids of all processes below ``pid``."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    stack = list(children.get(pid, []))
    while stack:
        child = stack.pop()
        yield child
        stack += children.get(child, [])


def survivors(pids: list[int], within_s: float) -> list[str]:
    """Names of the processes that still run after ``within_s`` seconds; a zombie runs no more."""
    deadline = time.monotonic() + within_s
    while True:
        alive = [name for pid in pids if (name := _running(pid)) is not None]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.1)


def _running(pid: int) -> str | None:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    return None if rest.split()[0] in "ZX" else name


def writer_died(root: Path) -> Callable[[], bool]:
    """A condition: the process that holds the root's lease is not alive any more."""

    def died() -> bool:
        try:
            pid = int(json.loads((root / "lease.json").read_text())["pid"])
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return (root / "lease.json").exists()
        return state in "ZX"

    return died


def open_store(root: Path) -> Store:
    """The store as a reader sees it."""
    return Store.open(str(root))


def _signal(pid: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)
