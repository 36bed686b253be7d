"""One run: a method over a stream with a seed. Every method takes the same base stage and the same batches.

Training sees the images of its own task and nothing older, save `joint`, whose point it is to see all, and a trunk that
moves where that pays, which learns from all tasks that it has not learnt from yet (`moving.py`).
"""

# M measured images   d embedding

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.data import ImageSet, Ints
from benchmarks.quality.measure import (
    Measured,
    measure_compatibility,
    measure_stage,
    measure_unseen,
    nearest_by_cosine,
)
from benchmarks.quality.methods import EXACT, FROZEN, Method, pooled_spec
from benchmarks.quality.oracle import oracle_map
from benchmarks.quality.protocols import Select, Stream, build_stream
from benchmarks.quality.rows import Row, RowFile
from benchmarks.quality.state import Floats, RunState, load_state, load_student, save_state, save_student
from stream_odml.ingest.sampler import PKSampler
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import DriftMap, IdentityMap, compose
from stream_odml.learn.embedder import Embedder, build_embedder, embed, embedder_to_bytes
from stream_odml.learn.finish import StageOutcome
from stream_odml.learn.settings import RENAMED, EmbedderSpec, StageSettings
from stream_odml.learn.stage import StageLearner
from stream_odml.learn.world import World

MAPPING = {"gallery_map", "ridge", "map_composites", "kernel", "kernel_width", "kernel_floor", "kernel_pairs"}
"""Settings of how the gallery follows, which leave the student alone where nothing it learns reads them."""

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    images: ImageSet
    protocol: str
    select: Select
    spec: EmbedderSpec
    common: StageSettings
    work: Path
    rows: RowFile
    commit: str
    quick: bool = False
    device: str = "cpu"
    oracle: bool = False
    """Measure a gallery too that is moved by `oracle_map`."""
    weights: str | None = None
    """Digest of the file with the pretrained weights, where there is one."""

    def stream(self, seed: int) -> Stream:
        return build_stream(self.protocol, self.images.labels, self.images.class_names, seed, self.select)

    def key(self, method: Method | None, seed: int) -> str:
        """Names one run; of None, the base stage that all methods share."""
        parts: dict[str, Any] = {
            "data": self.images.fingerprint, "protocol": self.protocol, "select": self.select, "seed": seed,
            "spec": asdict(self.spec), "commit": self.commit, "quick": self.quick, "device": self.device,
            "base": _by_first_names(self.common) if method is None else self.key(None, seed),
        }  # fmt: skip
        parts |= {"weights": self.weights} if self.weights else {}
        if method is not None:
            parts |= {"preset": method.preset, "settings": _by_first_names(method.settings)}
            parts |= {"rival": asdict(method.rival)} if method.rival is not None else {}  # type: ignore[call-overload]
            parts |= {"map": asdict(method.map_rival)} if method.map_rival is not None else {}
            parts |= {"oracle": True} if self.oracle else {}
            parts |= {"lift": method.lift} if method.lift is not None else {}
            parts |= {"head": dict(method.head)} if method.head else {}
        return _digest(parts)


class Run:
    """Stages of one method and seed; resumes after the last finished one."""

    def __init__(self, study: Study, method: Method, seed: int, tick: Tick) -> None:
        self.study, self.method, self.seed, self.tick = study, method, seed, tick
        self.stream = study.stream(seed)
        self.key = study.key(method, seed)
        self.folder = study.work / f"run-{self.key}"
        self.labels_M = study.images.labels[self.stream.measured]
        self._pass_s = 0.0
        """Seconds after the last step of this stage: its last pass, or the features and the head."""

    def go(self) -> None:
        """Runs what is left; each stage's rows are on disk before its state is."""
        state = load_state(self.folder)
        if state and not self.study.rows.stages().get(self.key, set()) >= set(range(state.stage + 1)):
            shutil.rmtree(self.folder)  # its rows are gone, and cannot be measured any more
            state = None
        state = state or self._started()
        for stage in range(state.stage + 1, len(self.stream.tasks)):
            self._learn(state, stage)
        rows = list(self._compatibility(state))
        totals = {"steps": float(state.steps), "train_s": state.train_s, **self._bytes(state)}
        rows += [
            {"split": "all", "gallery": "none", "metric": name, "value": value}
            for name, value in totals.items()
        ]
        self.study.rows.append(self._labelled(rows, state.stage))

    def _bytes(self, state: RunState) -> dict[str, float]:
        """What is kept: for each item of the gallery, each class, and each version."""
        version = len(embedder_to_bytes(state.student))
        version += len(state.forward[-1].to_bytes()) if state.forward else 0
        classes = {"class_bytes": len(state.bank.to_bytes()) / len(state.bank)} if len(state.bank) else {}
        return {"item_bytes": 4.0 * state.mapped_Md.shape[1], **classes, "version_bytes": float(version)}

    def _compatibility(self, state: RunState) -> Iterator[Measured]:
        base_rows = np.flatnonzero(self.stream.arrival == 0)
        return measure_compatibility(self.labels_M[base_rows], state.base_views, state.forward)

    def _started(self) -> RunState:
        count = len(self.stream.measured)
        if self.method.preset == "frozen_pretrained":
            student = build_embedder(pooled_spec(self.study.spec), self.seed).eval()
            bank = ClassBank.empty(student.spec.dim)
        else:
            student, bank = self._base()
        nothing = np.zeros((count, student.spec.dim), np.float32)
        state = RunState(0, student, bank, nothing, nothing.copy())
        state.oracle_Md = nothing.copy() if self.study.oracle else None
        self._measure(state, IdentityMap())
        return state

    def _base(self) -> tuple[Embedder, ClassBank]:
        """Learnt once for all methods, and whitened for those that ask for it."""
        key, plain = self.study.key(None, self.seed), self.plain_base()
        share = self.method.settings.whitening
        if not share:
            return plain.student, plain.bank
        whitened = replace(self.study.common, whitening=share, base_steps=0)
        state = self._base_stage(f"base-{key}-whitened-{share}", whitened, plain.student)
        return state.student, state.bank

    def plain_base(self) -> RunState:
        """Return the base stage before any whitening, learnt where it is not there yet."""
        return self._base_stage(
            f"base-{self.study.key(None, self.seed)}",
            replace(self.study.common, whitening=0.0),
            build_embedder(self.study.spec, self.seed),
        )

    def _base_stage(self, name: str, settings: StageSettings, start: Embedder) -> RunState:
        state = load_state(self.study.work / name)
        if state is None:
            outcome = self._stage(settings, start, ClassBank.empty(start.spec.dim), 0, {})[0]
            none = np.zeros((0, start.spec.dim), np.float32)
            state = RunState(0, outcome.student, outcome.bank, none, none)
            save_state(self.study.work / name, state)
        return state

    def _learn(self, state: RunState, stage: int) -> None:
        state.stage = stage
        if self.method.preset in FROZEN:
            state.forward.append(IdentityMap())
            state.backward.append(IdentityMap())
            self._measure(state, IdentityMap())
            return
        parent = state.student
        outcome, seconds, steps = self._stage(
            self.method.settings, parent, state.bank, stage, self._backward(state)
        )
        state.student, state.bank = outcome.student, outcome.bank
        if state.oracle_Md is not None:
            old = np.concatenate([task.images for task in self.stream.tasks[:stage]])
            moved = oracle_map(self.study.images, old, parent, outcome.student, self.study.device)
            state.oracle_Md = moved.apply(state.oracle_Md)
        state.train_s += seconds
        state.steps += steps
        state.forward.append(outcome.forward)
        state.backward.append(outcome.backward)
        self._measure(state, outcome.forward)

    def _backward(self, state: RunState) -> dict[str, DriftMap]:
        last = state.stage - 1
        return {version_name(k): compose(state.backward[k:last][::-1]) for k in range(last)}

    def _measure(self, state: RunState, forward: DriftMap) -> None:
        stage = state.stage
        known, arrives = self.stream.arrival < stage, self.stream.arrival == stage
        queries = np.zeros_like(state.stale_Md)
        # Images of tasks to come are not measured; a frozen model embeds none twice.
        seen = arrives if self.method.preset in FROZEN else known | arrives
        queries[seen] = self._embed(state.student, self.stream.measured[seen])
        queries[known & ~seen] = state.stale_Md[known & ~seen]
        state.mapped_Md[known] = forward.apply(state.mapped_Md[known])
        state.mapped_Md[arrives] = state.stale_Md[arrives] = queries[arrives]
        state.base_views.append(queries[self.stream.arrival == 0])
        galleries: dict[str, Floats] = {
            "reextracted": queries, "stale": state.stale_Md
        }  # fmt: skip
        if state.oracle_Md is not None:
            state.oracle_Md[arrives] = queries[arrives]
            galleries["oracle"] = state.oracle_Md
        rows = list(measure_stage(stage, self.labels_M, self.stream.arrival, queries, galleries))
        asked, served = self._compared(state, queries, state.mapped_Md)
        rows += measure_stage(stage, self.labels_M, self.stream.arrival, asked, {"mapped": served})
        coming = self._embedded_coming(state.student, queries, stage)
        asked, served = self._compared(state, queries, np.where(coming[:, None], queries, state.mapped_Md))
        find = nearest_by_cosine(asked, served, self.labels_M)
        rows += measure_unseen(known | arrives, coming, find, "mapped")
        self._keep(state, rows)

    def _compared(self, state: RunState, queries_Md: Floats, gallery_Md: Floats) -> tuple[Floats, Floats]:
        """Return queries and items as they are compared in the gallery that is served."""
        del state
        return queries_Md, gallery_Md

    def _embedded_coming(self, model: Embedder, queries_Md: Floats, stage: int) -> NDArray[np.bool_]:
        """Embed the measured images of the task to come; return which they are."""
        coming: NDArray[np.bool_] = self.stream.arrival == stage + 1
        queries_Md[coming] = self._embed(model, self.stream.measured[coming])
        return coming

    def _embed(self, model: Embedder, images: Ints) -> Floats:
        vectors_nd: Floats = embed(model, self.study.images.pixels[images], self.study.device)
        model.cpu()
        return vectors_nd

    def _keep(self, state: RunState, rows: list[Measured]) -> None:
        self._append(state, rows)
        save_state(self.folder, state)

    def _append(self, state: RunState, rows: list[Measured]) -> None:
        cost = {"split": "all", "gallery": "none", "metric": "pass_s", "value": self._pass_s}
        self.study.rows.append(self._labelled([*rows, cost], state.stage))
        self._pass_s = 0.0

    def _labelled(self, rows: list[Measured], stage: int) -> Iterator[Row]:
        study = self.study
        shared = {
            "run": self.key, "data": study.images.name, "protocol": study.protocol, "select": study.select,
            "method": self.method.name, "seed": self.seed, "stage": stage, "git": study.commit,
        }  # fmt: skip
        return ({**shared, **row} for row in rows)

    def _stage(
        self,
        settings: StageSettings,
        old: Embedder,
        bank: ClassBank,
        stage: int,
        backward: dict[str, DriftMap],
        moves_trunk: bool = False,
        images: Ints | None = None,
    ) -> tuple[StageOutcome, float, int]:
        """(outcome, seconds of the steps and of the last pass, steps). On a CPU its own seconds, which neighbours
        on the machine and a pause leave alone. `images`: what it learns, where that is not its task."""
        clock = self._clock
        images = self._seen(stage) if images is None else images
        classes, labels = np.unique(self.study.images.labels[images], return_inverse=True)
        names = [self.study.images.class_names[int(c)] for c in classes]
        seed = int(np.random.SeedSequence([self.seed, stage]).generate_state(1)[0])
        learner = StageLearner(
            settings, old, bank, n_classes=len(names), version_id=version_name(stage), seed=seed,
            world=World.current(self.study.device), backward_maps=backward, moves_trunk=moves_trunk,
        )  # fmt: skip
        total, twin = learner.total_steps, None if moves_trunk else self._twin(settings, stage)
        spent = load_student(twin, learner.networks.student) if twin else None
        started = clock()
        if spent is None:
            sampler = PKSampler(labels, settings.classes_per_batch, settings.images_per_class, seed)
            for step in range(total):
                rows = sampler.batch(step)
                learner.step(self._pixels(images[rows]), torch.from_numpy(labels[rows].astype(np.int64)))
                self.tick(f"{self.method.name} seed {self.seed} stage {stage}", step + 1, total)
            if twin:
                save_student(twin, learner.networks.student, clock() - started)
        batches, learnt = self._batches(images, labels.astype(np.int64)), clock()
        outcome = learner.finish(batches, names, len(images))
        self._pass_s += clock() - learnt
        return outcome, clock() - started + (spent or 0.0), total

    @property
    def _clock(self) -> Callable[[], float]:
        return time.process_time if self.study.device == "cpu" else time.perf_counter

    def _twin(self, settings: StageSettings, stage: int) -> Path | None:
        """Where this stage's student waits for a method that learns the same and only maps the gallery otherwise,
        as SDC does; None where what is learnt reads the moved bank or the maps."""
        if settings.weight_repel or settings.weight_virtual or stage == 0:
            return None
        if settings.error_whitening and stage > 1:  # the parent was turned by its own map's error
            return None
        learnt = {name: value for name, value in asdict(settings).items() if name not in MAPPING}
        joint = self._sees_all
        parts = [self.study.key(None, self.seed), learnt, joint, stage]
        return self.study.work / f"twin-{_digest(parts)}"

    def _seen(self, stage: int) -> Ints:
        first = 0 if self._sees_all else stage
        return np.concatenate([task.images for task in self.stream.tasks[first : stage + 1]])

    @property
    def _sees_all(self) -> bool:
        return EXACT.get(self.method.preset, self.method.preset) == "joint"

    def _pixels(self, rows: Ints) -> torch.Tensor:
        return torch.from_numpy(self.study.images.pixels[rows])

    def _batches(self, images: Ints, labels: Ints) -> Iterator[tuple[torch.Tensor, Ints, Ints]]:
        for at in range(0, len(images), 256):
            part = slice(at, at + 256)
            yield self._pixels(images[part]), labels[part], images[part]


def version_name(stage: int) -> str:
    """The version that a stage makes."""
    return f"v{stage:04d}"


def _by_first_names(settings: StageSettings) -> dict[str, Any]:
    """Return the fields under the names that they had first, so that the keys of finished runs stay valid."""
    first = {new: old for old, new in RENAMED.items()}
    return {first.get(name, name): value for name, value in asdict(settings).items()}


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
