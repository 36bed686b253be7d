"""Rivals on a frozen trunk: each is fitted anew to the stored features of all tasks, from which `exact_frozen` is
solved as well. Written from the formulas of their sources; none takes a step through the trunk.
"""

# N stored items   D trunk feature   M random features   C classes   n images   r rank of a class's scatter

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Annotated, Literal, Protocol

import numpy as np
import scipy.linalg
import torch

from benchmarks.quality.data import Ints
from benchmarks.quality.state import Floats
from stream_odml.ingest.sampler import PKSampler
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.geometry import unit
from stream_odml.learn.lift import Float64s, Lift
from stream_odml.learn.metric_losses import SupervisedContrastiveLoss
from stream_odml.learn.ranges import Count, NonNegative, Positive, Range, Share, check_fields
from stream_odml.learn.weighing import Weighing
from stream_odml.zero import unit_rows

_STAGES_AT_HAND = 6
"""Fits that the three forms of RanPAC share: of the stages of one stream."""


class Fitted(Protocol):
    """A rival after a stage: what it makes of features, compared by cosine."""

    @property
    def tells_classes(self) -> bool:
        """Return whether it orders classes and not items: it is then told the class of every item of the gallery."""

    def queries(self, h_nD: Floats) -> Floats:
        """Return the vectors of queries."""

    def items(self, h_nD: Floats, label_n: Ints) -> Floats:
        """Return the vectors of items of the gallery."""


class Rival(Protocol):
    """Options of a rival."""

    def fit(self, h_ND: Floats, label_N: Ints, seed: int) -> Fitted:
        """Fit it to the stored features of all items so far."""


@dataclass(frozen=True, eq=False)
class ByClass:
    """Orders items by the score of their class."""

    scores: _Scores
    classes_C: Ints
    tells_classes: bool = True

    def queries(self, h_nD: Floats) -> Floats:
        return self.scores(h_nD)

    def items(self, h_nD: Floats, label_n: Ints) -> Floats:
        """Return one entry for each class, 1 at the item's own."""
        own_nC: Floats = (label_n[:, None] == self.classes_C[None]).astype(np.float32)
        return own_nC


@dataclass(frozen=True, eq=False)
class ByVector:
    """Compares items themselves."""

    embed: _Scores
    tells_classes: bool = False

    def queries(self, h_nD: Floats) -> Floats:
        return self.embed(h_nD)

    def items(self, h_nD: Floats, label_n: Ints) -> Floats:
        return self.embed(h_nD)


class _Scores(Protocol):
    def __call__(self, h_nD: Floats) -> Floats: ...


@dataclass(frozen=True)
class Ranpac:
    """RanPAC (McDonnell et al., NeurIPS 2023): f = ReLU(h R), R normal; class scores f (G + ridge I)^-1 C, G the sum of
    f fᵀ and C the sums of f by class. `classes`: the best score, as theirs; `logits`: cosine of scores; `features`:
    cosine of f in the metric (G + ridge I)^-1 in which the scores compare it with prototypes.
    """

    form: Literal["classes", "logits", "features"] = "classes"
    width: Annotated[int, Range(at_least=1)] = 5000
    ridge: Positive = 100.0

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, h_ND: Floats, label_N: Ints, seed: int) -> Fitted:
        ridge = _ridge_of(_Rows(h_ND), self.width, self.ridge, seed)
        classes = np.unique(label_N)
        if self.form == "features":
            return ByVector(ridge.features)
        weights_MC = ridge.weights((label_N[:, None] == classes[None]).astype(np.float32))

        def logits(h_nD: Floats) -> Floats:
            scores: Floats = ridge.lifted(h_nD) @ weights_MC
            return scores

        return ByClass(logits, classes) if self.form == "classes" else ByVector(logits)


class _Rows:
    """Features as the key of a cache: by their digest, as arrays are not hashable."""

    def __init__(self, h_ND: Floats) -> None:
        self.h_ND = h_ND
        self._key = (h_ND.shape, h_ND.tobytes())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rows) and self._key == other._key


@lru_cache(maxsize=_STAGES_AT_HAND)
def _ridge_of(rows: _Rows, width: int, ridge: float, seed: int) -> _Ridge:
    return _Ridge(rows.h_ND, width, ridge, seed)


class _Ridge:
    """Ridge regression on F = ReLU(H R) [N, M], by the products of its rows where items are fewer than random features:
    (FᵀF + ridge I)^-1 Fᵀ = Fᵀ (F Fᵀ + ridge I)^-1."""

    def __init__(self, h_ND: Floats, width: int, ridge: float, seed: int) -> None:
        random = np.random.default_rng((seed, 15))
        self._random_DM = random.standard_normal((h_ND.shape[1], width), np.float32)
        # U Uᵀ of U = Fᵀ / sqrt(ridge) is FᵀF / ridge.
        self._scale = ridge**-0.5
        self._U_NM = self._scale * self.lifted(h_ND)
        self._by_rows = len(h_ND) < width
        wide = self._U_NM.astype(np.float64)  # a small ridge is lost in the rounding of float32
        products = wide @ wide.T if self._by_rows else wide.T @ wide
        self._L = np.linalg.cholesky(products + np.eye(len(products)))

    def lifted(self, h_nD: Floats) -> Floats:
        f_nM: Floats = np.maximum(h_nD @ self._random_DM, 0)
        return f_nM

    def weights(self, target_NC: Floats) -> Floats:
        """Return (FᵀF + ridge I)^-1 Fᵀ Y."""
        if self._by_rows:
            weights_MC = self._U_NM.T @ scipy.linalg.cho_solve((self._L, True), target_NC, check_finite=False)
        else:
            sums_MC = self._U_NM.T @ target_NC
            weights_MC = scipy.linalg.cho_solve((self._L, True), sums_MC, check_finite=False)
        scaled_MC: Floats = (self._scale * weights_MC).astype(np.float32)
        return scaled_MC

    def features(self, h_nD: Floats) -> Floats:
        """Return z with z zᵀ = ridge f (FᵀF + ridge I)^-1 fᵀ.

        By rows a root of (I + U Uᵀ)^-1 is I - U L^-T (L + I)^-1 Uᵀ, L Lᵀ = I + Uᵀ U (Andrews, AIAA Journal 1968).
        """
        f_nM, solve = (
            self.lifted(h_nD),
            partial(scipy.linalg.solve_triangular, lower=True, check_finite=False),
        )
        if not self._by_rows:
            z_Mn: Floats = solve(self._L, f_nM.T).astype(np.float32)
            return z_Mn.T
        second_Nn = solve(self._L + np.eye(len(self._L)), solve(self._L, self._U_NM @ f_nM.T), trans=1)
        z_nM: Floats = f_nM - second_Nn.T.astype(np.float32) @ self._U_NM
        return z_nM


@dataclass(frozen=True)
class Fecam:
    """FeCAM (Goswami et al., NeurIPS 2023): each class by its mean and its own covariance, of features to the power
    `power`; covariance + shrink (v I + o (1 - I)), v its mean variance, o the mean of its other entries, then
    divided to a correlation; Mahalanobis distance of unit vectors, the nearest class wins.
    """

    shrink: Positive = 1.0
    power: Positive = 0.5

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, h_ND: Floats, label_N: Ints, seed: int) -> Fitted:
        del seed
        classes = np.unique(label_N)
        x_ND = self._powered(h_ND)
        metrics = [_ClassMetric(x_ND[label_N == label], self.shrink) for label in classes]

        def scores(h_nD: Floats) -> Floats:
            z_nD = unit_rows(self._powered(h_nD))
            return -np.stack([metric.distance(z_nD) for metric in metrics], axis=1).astype(np.float32)

        return ByClass(scores, classes)

    def _powered(self, h_nD: Floats) -> Float64s:
        powered: Float64s = np.maximum(h_nD, 0).astype(np.float64) ** self.power
        return powered


class _ClassMetric:
    """The mean of a class, and the inverse of its correlation as diagonal plus low rank: no matrix of D x D."""

    def __init__(self, x_nD: Float64s, shrink: float) -> None:
        n, D = x_nD.shape
        mean_D = x_nD.mean(axis=0)
        self._mean_D = unit_rows(mean_D[None])[0]
        centred_nD = (x_nD - mean_D) / max(n - 1, 1) ** 0.5
        variance_D = np.square(centred_nD).sum(axis=0)
        v = float(variance_D.mean())
        o = float(np.square(centred_nD.sum(axis=1)).sum() - variance_D.sum()) / (D * (D - 1))
        diagonal_D = variance_D + shrink * v
        if v == 0:  # one image, or images that are all alike: nothing is known of its scatter
            diagonal_D, o = np.ones(D), 0.0
        # shrunk = (shrink v - shrink o) I + Fᵀ diag(sign) F
        root_D = np.sqrt(diagonal_D)
        factors_rD = np.concatenate([centred_nD, np.full((1, D), abs(shrink * o) ** 0.5)]) / root_D
        sign_r = np.concatenate([np.ones(n), [np.sign(o) or 1.0]])
        self._inverse_D = diagonal_D / (shrink * max(v - o, 1e-12 * v) if v else 1.0)
        inner_rr = np.diag(sign_r) + (factors_rD * self._inverse_D) @ factors_rD.T
        self._factors_rD, self._inner_rr = factors_rD * self._inverse_D, np.linalg.inv(inner_rr)

    def distance(self, z_nD: Float64s) -> Float64s:
        differ_nD = z_nD - self._mean_D
        along_nr = differ_nD @ self._factors_rD.T
        plain_n = np.square(differ_nD) @ self._inverse_D
        distance_n: Float64s = plain_n - np.einsum("nr,rs,ns->n", along_nr, self._inner_rr, along_nr)
        return distance_n


@dataclass(frozen=True)
class StoredHead:
    """A linear head trained from nothing, after each task, by supervised contrast (Khosla et al., 2020) on the stored
    features of all tasks: what one would do who has the features and no closed form."""

    dim: Annotated[int, Range(at_least=1)] = 128
    steps: Count = 1000
    rate: Positive = 1e-3
    decay: NonNegative = 5e-4
    temperature: Positive = 0.1
    classes_per_batch: Annotated[int, Range(at_least=2)] = 32
    images_per_class: Annotated[int, Range(at_least=2)] = 4

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, h_ND: Floats, label_N: Ints, seed: int) -> Fitted:
        _, label_N = np.unique(label_N, return_inverse=True)
        u_ND = torch.from_numpy(unit_rows(h_ND))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = torch.nn.Linear(h_ND.shape[1], self.dim)
        sampler = PKSampler(label_N, self.classes_per_batch, self.images_per_class, seed)
        optimiser = torch.optim.Adam(head.parameters(), self.rate, weight_decay=self.decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(self.steps, 1))
        loss = SupervisedContrastiveLoss(self.temperature)
        for step in range(self.steps):
            rows = torch.from_numpy(sampler.batch(step))
            optimiser.zero_grad()
            loss(unit(head(u_ND[rows])), torch.from_numpy(label_N)[rows]).backward()
            optimiser.step()
            schedule.step()

        def embed(h_nD: Floats) -> Floats:
            with torch.inference_mode():
                z_nd: Floats = head(torch.from_numpy(unit_rows(h_nD))).numpy()
            return z_nd

        return ByVector(embed)


@dataclass(frozen=True)
class SolvedPart:
    """The head of `ours` with settings as they are given, none chosen: `known` part or `new` part for all items, from
    which the defaults are derived; `classes`: the nearest mean of a class in the known part, told what `ranpac` and
    `fecam` are told."""

    part: Literal["known", "new", "classes"] = "known"
    dim: Annotated[int, Range(at_least=1)] = HeadSettings.dim
    width: Count = 0
    shrinkage: Share = HeadSettings.shrinkage
    weight: Positive = HeadSettings.weight
    weighing: Weighing = HeadSettings.weighing

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, h_ND: Floats, label_N: Ints, seed: int) -> Fitted:
        lift = Lift(h_ND.shape[1], self.width, seed)
        names = [f"{label:09}" for label in label_N.tolist()]
        head = solve_head(
            ClassSums.of(lift, encode(h_ND), names),
            HeadSettings(
                dim=self.dim,
                width=self.width,
                shrinkage=self.shrinkage,
                new_shrinkage=self.shrinkage,
                weight=self.weight,
                weighing=self.weighing,
            ),
        )

        def embed(h_nD: Floats) -> Floats:
            z_n: Floats = head.split(head.embed(h_nD))[self.part == "new"]
            return z_n

        if self.part != "classes":
            return ByVector(embed)
        classes, z_Nd = np.unique(label_N), embed(h_ND)
        means_Cd: Floats = unit_rows(np.stack([z_Nd[label_N == label].mean(axis=0) for label in classes]))

        def scores(h_nD: Floats) -> Floats:
            cosines_nC: Floats = embed(h_nD) @ means_Cd.T
            return cosines_nC

        return ByClass(scores, classes)


RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        "ranpac": Ranpac("classes"),
        "ranpac_logits": Ranpac("logits"),
        "ranpac_features": Ranpac("features"),
        "fecam": Fecam(),
        "stored_head": StoredHead(),
        "solved_classes": SolvedPart("classes"),
        "solved_part": SolvedPart(),
    }
)
"""By the name of the table, each with the options that validation chose."""
