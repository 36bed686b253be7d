"""One run under a head that is solved, from features as a gallery holds them. It takes no step after the base stage,
unless its method moves the trunk; base stage, batches and images are those of every other method.
"""

# M measured images   N learnt images   D trunk feature

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.data import Ints
from benchmarks.quality.measure import (
    Measured,
    measure_stage,
    measure_unseen,
    measure_versions,
    nearest_by_cosine,
)
from benchmarks.quality.methods import ALWAYS
from benchmarks.quality.pseudo_replay import PSEUDO
from benchmarks.quality.state import TRAINED, Floats, RunState, SolvedState, whole
from benchmarks.quality.study import Run
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, solve_head, whitening
from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.learn.embedder import Embedder, build_embedder, embedder_to_bytes, training_layer, trunk_of
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Float64s, Lift
from stream_odml.learn.map_fit import MapFit
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.learn.trained_layer import moved_layer
from stream_odml.pipeline.evaluating import by_head
from stream_odml.pipeline.head_solving import CHOSEN_CLASSES, CHOSEN_ITEMS, HeadChoice, Items, Solved, solve

PUSHED = replace(PSEUDO["apr_l2"], samples=30)
"""By which images of a task become pseudo-samples of each old class for the map of `apr_exact`."""
WHITENING = 0.8
"""Share of the scatter in the whitening that unseen classes are measured beside."""


class ExactRun(Run):
    """Stages of one method and seed; resumes after the last finished one."""

    _noted: Mapping[str, float] = MappingProxyType({})
    """What a stage says of itself, beside what is measured."""
    _solved: Solved | None = None
    _sums: ClassSums

    @property
    def _spec(self) -> EmbedderSpec:
        return replace(self.study.spec, head="discriminant", lift=self.method.lift)

    def _compatibility(self, state: RunState) -> Iterator[Measured]:
        """Nothing more: it is measured stage by stage, as the head of each stage is at hand."""
        return iter(())

    def _versions(self, state: RunState, fresh_MD: Floats, forward: DriftMap) -> Iterator[Measured]:
        """What every version so far has stored of the base classes, followed since as a gallery is; none where all is
        embedded anew."""
        if self._sees_all or len(state.base_views) < state.stage:  # or begun by an earlier release
            return
        assert state.solved is not None
        base, head = np.flatnonzero(self.stream.arrival == 0), state.solved.head
        if not isinstance(forward, IdentityMap):
            state.base_views = [stored(forward.apply(view)) for view in state.base_views]
        state.base_views.append(stored(fresh_MD[base]))
        galleries = [_view(head, view) for view in state.base_views]
        yield from measure_versions(self.labels_M[base], _view(head, fresh_MD[base]), galleries)

    def _bytes(self, state: RunState) -> dict[str, float]:
        """Items are codes of 8 bits with a scale, classes their sums; a version is a head, and a trunk of its own."""
        assert state.solved is not None
        head = state.solved.head
        version = len(head.to_bytes())
        if state.forward and not isinstance(state.forward[-1], IdentityMap):
            version += len(embedder_to_bytes(state.student)) + len(state.forward[-1].to_bytes())
        item, sums = float(state.mapped_Md.shape[1] + 4), 4.0 * head.lift.out_dim
        return {"item_bytes": item, "class_bytes": sums, "version_bytes": float(version)}

    def _started(self) -> RunState:
        student, bank = self._start()
        nothing = np.zeros((len(self.stream.measured), self._trunk(student).out_dim), np.float32)
        state = RunState(0, student, bank, nothing, nothing.copy(), taken=[TRAINED])
        self._solve(state, IdentityMap(), IdentityMap())
        self._measure(state, IdentityMap())
        return state

    def _start(self) -> tuple[Embedder, ClassBank]:
        if self.method.preset == "exact_pretrained":
            trunk = build_embedder(self._spec, self.seed).eval()
            return trunk, ClassBank.empty(trunk.out_dim)
        plain = self.plain_base()
        if self._sees_all:
            return plain.student, plain.bank
        trunk = trunk_of(plain.student, self._spec).eval()
        return trunk, ClassBank.empty(trunk.out_dim)

    @cached_property
    def _base_features(self) -> tuple[Floats, float]:
        """Of all images of the stream under the trunk of the base stage, embedded once for all methods that keep it;
        and the seconds that each of them took."""
        path = self.study.work / f"features-{self.study.key(None, self.seed)}.npz"
        if not path.exists():
            images = np.concatenate([*(task.images for task in self.stream.tasks), self.stream.measured])
            trunk, began = self._start()[0], self._clock()
            h_nD = super()._embed(trunk, images)
            image_s = (self._clock() - began) / len(images)
            all_ND = np.zeros((len(self.study.images.labels), h_nD.shape[1]), np.float32)
            all_ND[images] = h_nD
            aside = path.with_suffix(f".{os.getpid()}.part")
            with aside.open("wb") as file:
                np.savez(file, features=all_ND, image_s=image_s)
            os.replace(aside, path)
        with whole(path, path), np.load(path) as arrays:
            return arrays["features"], float(arrays["image_s"])

    def _embed(self, model: Embedder, images: Ints) -> Floats:
        if self.method.keeps_base_trunk:
            found_nD: Floats = self._base_features[0][images]
            return found_nD
        return super()._embed(model, images)

    def _learn(self, state: RunState, stage: int) -> None:
        state.stage = stage
        forward: DriftMap = IdentityMap()
        backward: DriftMap = IdentityMap()
        if self.method.preset in (*ALWAYS, "joint_exact"):
            outcome, seconds, steps = self._stage(
                self.method.settings,
                state.student,
                state.bank,
                stage,
                self._backward(state),
                moves_trunk=not self._sees_all,
            )
            parent, state.student = state.student, outcome.student
            state.bank = outcome.bank if self._sees_all else state.bank
            state.train_s += seconds
            state.steps += steps
            if not self._sees_all:
                forward, backward = outcome.forward, outcome.backward
            if self.method.preset == "apr_exact":
                forward = self._pseudo_map(state, parent)
        state.forward.append(forward)
        state.backward.append(backward)
        self._solve(state, forward, backward)
        self._measure(state, forward)

    def _pseudo_map(self, state: RunState, parent: Embedder) -> DriftMap:
        """Fit the map to the task's images and to pseudo-samples of the classes before it."""
        assert state.solved is not None
        learnt, of_image = state.solved, self.study.images.labels
        labels_N, images = of_image[learnt.images_N], self._seen(state.stage)
        means = {int(c): learnt.features_ND[labels_N == c].mean(axis=0) for c in np.unique(labels_N)}
        models, fit = (parent, state.student), MapFit(parent.out_dim)
        x_nD, y_nD = (torch.from_numpy(self._embed(model, images)) for model in models)
        fit.add(x_nD, y_nD, torch.from_numpy(of_image[images]))
        for label, x, y in PUSHED.pairs(models, self.study.images.pixels[images], means, self.study.device):
            fit.add(x, y, torch.full((len(x),), label), composites=True)
        return fit.fitted(None).forward

    def _trunk(self, student: Embedder) -> Embedder:
        return trunk_of(copy.deepcopy(student), self._spec).eval() if self._sees_all else student

    def _layer(self, state: RunState, backward: DriftMap) -> Float64s | None:
        """Return the layer behind which the trunk was trained, followed since as the product does."""
        if self.method.preset == "exact_pretrained":
            return None
        if state.solved is not None and not self._sees_all:
            return moved_layer(state.solved.head.layer_lD, backward)
        return training_layer(state.student if self._sees_all else self.plain_base().student)

    def _solve(self, state: RunState, forward: DriftMap, backward: DriftMap) -> None:
        """Add the task's features to those that are stored, moved as a gallery's are, and solve the head of all."""
        images = self._seen(state.stage)
        found_s = self._base_features[1] * len(images) if self.method.keeps_base_trunk else 0.0
        began, trunk, before = self._clock(), self._trunk(state.student), state.solved
        features = stored(self._embed(trunk, images))
        earlier = None
        if before is not None:
            earlier = HeadChoice(before.head.settings, *before.chosen)
            if not self._sees_all:
                old = before.features_ND if isinstance(forward, IdentityMap) else moved(before, forward)
                images = np.concatenate([before.images_N, images])
                features = np.concatenate([old, features])
        growth, layer_lD = self.method.settings.choice_growth, self._layer(state, backward)
        self._solve_with(state, images, features, earlier, growth, layer_lD)
        self._pass_s += self._clock() - began + found_s

    def _solve_with(
        self,
        state: RunState,
        images: Ints,
        features: Floats,
        earlier: HeadChoice | None,
        growth: float | None,
        layer_lD: Float64s | None,
    ) -> None:
        """Solve the head of all images learnt so far, from their features as stored."""
        items = Items([str(i) for i in images.tolist()], self._names(images), encode(features))
        dim = features.shape[1]
        solved = solve(
            ClassSums.empty(Lift(dim, self._spec.lift_of(dim), self.seed)),
            items,
            None,
            self.study.spec.dim,
            earlier=earlier,
            growth=growth,
            layer_lD=layer_lD,
            trained=self._trained(state),
        )
        if self.method.head:
            head = solve_head(solved.sums, replace(solved.head.settings, **dict(self.method.head)), layer_lD)
            solved = replace(solved, head=head)
        self._solved, self._sums = solved, solved.sums
        chosen = solved.figures[CHOSEN_CLASSES], solved.figures[CHOSEN_ITEMS]
        state.solved = SolvedState(images, features, solved.head, chosen)

    def _trained(self, state: RunState) -> set[str]:
        """Return the classes that the trunk of a state was trained on."""
        tasks = [task for task, became in enumerate(state.taken) if became == TRAINED]
        if self._sees_all or self.method.preset in ALWAYS:
            tasks = list(range(state.stage + 1))
        if self.method.preset == "exact_pretrained":
            tasks = []
        return {name for task in tasks for name in self._names(self.stream.tasks[task].images)}

    def _names(self, images: Ints) -> list[str]:
        names = self.study.images.class_names
        return [names[c] for c in self.study.images.labels[images].tolist()]

    def _measure(self, state: RunState, forward: DriftMap, anew_M: NDArray[np.bool_] | None = None) -> None:
        """`anew_M`: which measured images the stage embedded anew, where these are not those of its task alone."""
        assert state.solved is not None
        stage, trunk = state.stage, self._trunk(state.student)
        known, arrives = self.stream.arrival < stage, self.stream.arrival == stage
        stayed = all(isinstance(move, IdentityMap) for move in (*state.forward, forward))
        stays = stayed and not self._sees_all
        fresh = state.stale_Md.copy()
        wanted = arrives if stays else known | arrives
        fresh[wanted] = self._embed(trunk, self.stream.measured[wanted])
        anew = arrives if anew_M is None else anew_M
        if self._sees_all:
            state.mapped_Md[known] = fresh[known]
        elif not isinstance(forward, IdentityMap):
            state.mapped_Md[known] = stored(forward.apply(state.mapped_Md[known]))
        state.mapped_Md[anew] = stored(fresh[anew])
        state.stale_Md[arrives] = state.mapped_Md[arrives]
        if stays:
            fresh[known] = state.mapped_Md[known]
        galleries = {"reextracted": fresh, "mapped": state.mapped_Md, "stale": state.stale_Md}
        queries, views = self._views(state, galleries)
        rows = list(measure_stage(stage, self.labels_M, self.stream.arrival, queries, views))
        rows += self._versions(state, fresh, forward)
        coming = self._embedded_coming(trunk, fresh, stage)
        rows += self._unseen(state, known | arrives, coming, fresh, state.mapped_Md)
        rows += [
            {"split": "all", "gallery": "none", "metric": name, "value": value}
            for name, value in self._noted.items()
        ]
        self._keep(state, rows)

    def _views(self, state: RunState, galleries: dict[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        """Return queries and galleries as the head compares them, from features."""
        assert state.solved is not None
        head = state.solved.head
        views = {form: _view(head, h_MD) for form, h_MD in galleries.items()}
        return views["reextracted"], views

    def _finder(
        self, state: RunState, fresh_MD: Floats, gallery_MD: Floats
    ) -> Callable[[Ints], Floats] | None:
        """Return what finds classes to come, for `measure_unseen`."""
        assert state.solved is not None
        names, finder = list(self.study.images.class_names), by_head(state.solved.head)

        def find(rows: Ints) -> Floats:
            classes = [names[label] for label in self.labels_M[rows]]
            return finder(classes, fresh_MD[rows], gallery_MD[rows])

        return find

    def _unseen(
        self,
        state: RunState,
        known: NDArray[np.bool_],
        coming: NDArray[np.bool_],
        fresh_MD: Floats,
        mapped_MD: Floats,
    ) -> Iterator[Measured]:
        gallery_MD = np.where(coming[:, None], stored(fresh_MD), mapped_MD)
        find = self._finder(state, fresh_MD, gallery_MD)
        if find is not None:
            yield from measure_unseen(known, coming, find, "mapped")
        plain = self._sums.narrowed(0)
        map_DD: Floats = whitening(plain, WHITENING).T.astype(np.float32)
        mean_D: Floats = plain.mean().astype(np.float32)

        def whitened(h_MD: Floats) -> Floats:
            z_MD: Floats = np.matmul(plain.lift.apply(h_MD) - mean_D, map_DD, dtype=np.float32)
            return z_MD

        queries, gallery = whitened(fresh_MD), whitened(gallery_MD)
        find_whitened = nearest_by_cosine(queries, gallery, self.labels_M)
        yield from measure_unseen(known, coming, find_whitened, "whitened")


def stored(h_nD: Floats) -> Floats:
    """Features as a gallery gives them back."""
    decoded: Floats = encode(h_nD).decode()
    return decoded


def moved(before: SolvedState, forward: DriftMap) -> Floats:
    """As a store moves them: in float64, and coded again."""
    return stored(forward.apply(before.features_ND.astype(np.float64)))


def _view(head: DiscriminantHead, h_MD: Floats) -> Floats:
    """Embeddings of items of classes that the head knows, all of which are compared by one part; of a head of one
    class, by the other."""
    known, new = head.split(head.embed(h_MD))
    view: Floats = (known if head.known_dim else new).astype(np.float32)
    return view
