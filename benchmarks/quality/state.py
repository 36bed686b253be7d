"""What a run needs to go on after its last finished stage: models, bank, maps and vectors, nothing pickled."""

# M measured images   d embedding   A images of the base classes

from __future__ import annotations

import contextlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.data import Ints
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.learn.drift import DriftMap, drift_map_from_bytes
from stream_odml.learn.embedder import Embedder, embedder_from_bytes, embedder_to_bytes

Floats = NDArray[np.float32]
WAITING, TRAINED, REFUSED = 0, 1, 2


@dataclass
class SolvedState:
    """N images learnt so far, with the features that a gallery would hold of them, and the head solved from these."""

    images_N: Ints
    features_ND: Floats
    head: DiscriminantHead
    chosen: tuple[float, float]
    """Classes and items for which the head's settings were chosen."""


@dataclass
class RunState:
    """After stage `stage`. `mapped` and `stale` hold what has arrived: embedded then, and since only mapped, or
    left alone; `base_views` the base classes' measured images as each version embeds them, under a solved head followed
    by maps since, as `mapped` is."""

    stage: int
    student: Embedder
    bank: ClassBank
    mapped_Md: Floats
    stale_Md: Floats
    train_s: float = 0.0
    steps: int = 0
    base_views: list[Floats] = field(default_factory=list)
    forward: list[DriftMap] = field(default_factory=list)
    backward: list[DriftMap] = field(default_factory=list)
    oracle_Md: Floats | None = None
    """As `mapped`, by maps that have seen the old classes' images; None where that is not measured."""
    taken: list[int] = field(default_factory=list)
    """What became of each task so far, where the trunk moves if that pays: `TRAINED`, `REFUSED` or `WAITING`."""
    solved: SolvedState | None = None
    """Under a head that is solved, what it is solved from; `student` is then the trunk (of `joint_exact` with its
    training head), and `mapped` and `stale` hold trunk features."""


def save_state(folder: Path, state: RunState) -> None:
    """Writes `folder`/<stage> aside, renames it, drops the one before."""
    aside, target = folder / f"part-{os.getpid()}", folder / str(state.stage)
    for old in (aside, target):
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir(parents=True)
    (aside / "student.safetensors").write_bytes(embedder_to_bytes(state.student))
    (aside / "bank").write_bytes(state.bank.to_bytes())
    for name, maps in (("forward", state.forward), ("backward", state.backward)):
        for i, drift_map in enumerate(maps):
            (aside / f"{name}-{i}").write_bytes(drift_map.to_bytes())
    arrays: dict[str, Any] = {f"view_{i}": view for i, view in enumerate(state.base_views)}
    arrays |= {"numbers": np.asarray([state.stage, state.train_s, state.steps])}
    arrays |= {"mapped": state.mapped_Md, "stale": state.stale_Md}
    arrays |= {} if state.oracle_Md is None else {"oracle": state.oracle_Md}
    arrays |= {"taken": np.asarray(state.taken, np.int64)}
    if state.solved is not None:
        (aside / "head").write_bytes(state.solved.head.to_bytes())
        arrays |= {"images": state.solved.images_N, "features": state.solved.features_ND}
        arrays |= {"chosen": np.asarray(state.solved.chosen)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    (aside / "vectors.npz").write_bytes(buffer.getvalue())
    try:
        os.replace(aside, target)
    except OSError:  # another process was as fast, and learnt the same
        shutil.rmtree(aside)
    shutil.rmtree(folder / str(state.stage - 1), ignore_errors=True)


def load_state(folder: Path) -> RunState | None:
    """The newest finished stage in `folder`, if any. ValueError for one that is damaged."""
    stages = [int(p.name) for p in folder.glob("[0-9]*")] if folder.exists() else []
    if not stages:
        return None
    at = folder / str(max(stages))
    with whole(at, folder):
        return _load(at)


@contextlib.contextmanager
def whole(at: Path, kept: Path) -> Iterator[None]:
    """Read what a run left at `at`: a file that is damaged, or lacks a part, ends in a ValueError that says to delete
    `kept`, as it is made again."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{at} is damaged ({error}); delete {kept}, and it is made again") from error


def _load(at: Path) -> RunState:
    with np.load(at / "vectors.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    stage, train_s, steps = arrays["numbers"]
    count = sum(name.startswith("view_") for name in arrays)
    maps = {
        name: [drift_map_from_bytes((at / f"{name}-{i}").read_bytes()) for i in range(int(stage))]
        for name in ("forward", "backward")
    }
    solved = None
    if "chosen" in arrays:
        head = DiscriminantHead.from_bytes((at / "head").read_bytes())
        classes, items = arrays["chosen"].tolist()
        solved = SolvedState(arrays["images"], arrays["features"], head, (classes, items))
    return RunState(
        int(stage),
        embedder_from_bytes((at / "student.safetensors").read_bytes()),
        ClassBank.from_bytes((at / "bank").read_bytes()),
        arrays["mapped"],
        arrays["stale"],
        float(train_s),
        int(steps),
        [arrays[f"view_{i}"] for i in range(count)],
        **maps,
        oracle_Md=arrays.get("oracle"),
        taken=arrays.get("taken", np.empty(0, np.int64)).tolist(),
        solved=solved,
    )


def save_student(folder: Path, student: Embedder, seconds: float) -> None:
    """A student after its last step, and the seconds that it took, written aside and renamed."""
    aside = folder.with_name(f"{folder.name}-part-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    (aside / "student.safetensors").write_bytes(embedder_to_bytes(student))
    (aside / "seconds").write_text(repr(seconds))
    if folder.exists():  # another process was as fast, and learnt the same
        shutil.rmtree(aside)
        return
    os.replace(aside, folder)


def load_student(folder: Path, student: Embedder) -> float | None:
    """Gives `student` the saved weights and returns their seconds; None where none are saved. ValueError for damaged
    ones."""
    if not folder.exists():
        return None
    with whole(folder, folder):
        saved = embedder_from_bytes((folder / "student.safetensors").read_bytes())
        seconds = float((folder / "seconds").read_text())
    student.load_state_dict(saved.state_dict())
    return seconds
