"""Maps trunk features of one model to those of another, of any length: when the backbone is changed, and no image of
most items is at hand.

h_new ~ A φ(h_old) + b, where φ is the direction of a feature, and beside it random features after a ReLU: a network of
one hidden layer that is fitted in closed form. Whether it has a hidden layer, how much it is pulled to the mean and how
many directions of the new space it keeps is what classes held out of the fit say.
"""

# n pairs   D old feature   E entries of φ   F new feature   r directions kept

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.lift import Lift
from stream_odml.learn.packing import Floats, pack, unpack

FOLDS = 4
HIDDEN = (0, 512)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Candidates, in units of φ's mean variance."""
KEPT = (1.0, 0.5, 0.25)
"""Candidates: share of the new feature's directions that are predicted, of the most variance."""
LEAST_PAIRS = 16
Float64s = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CrossMap:
    """u -> A φ(u) + b on directions: what it gives is of length about 1."""

    lift: Lift
    A_FE: NDArray[np.float32]
    b_F: NDArray[np.float32]
    rank: int
    error: float
    """1 - cosine to the true direction, on classes held out of the fit."""

    def apply(self, h_nD: Floats) -> NDArray[np.float32]:
        """Return predicted features [n, F] of old ones [n, D]."""
        mapped_nF: NDArray[np.float32] = self.lift.apply(h_nD) @ self.A_FE.T + self.b_F
        return mapped_nF

    def to_bytes(self) -> bytes:
        """Return bytes for `from_bytes`."""
        lift = {"dim": self.lift.dim, "width": self.lift.width, "seed": self.lift.seed}
        return pack("cross-map", {"A": self.A_FE, "b": self.b_F}, lift=lift, rank=self.rank, error=self.error)

    @staticmethod
    def from_bytes(data: bytes) -> CrossMap:
        """Read the bytes of `to_bytes`. Raises BadArtifact where they are damaged."""
        _, arrays, meta = unpack(data, ("cross-map",))
        return CrossMap(
            Lift(**meta["lift"]), arrays["A"], arrays["b"], int(meta["rank"]), float(meta["error"])
        )


@dataclass(frozen=True)
class Choice:
    """Settings of a map."""

    width: int
    ridge: float
    kept: float
    """Share of the directions."""
    error: float
    """1 - cosine, on classes held out of the fit."""


def choose_cross_map(old_nD: Floats, new_nF: Floats, classes: Sequence[str], seed: int = 0) -> Choice:
    """Return the settings with the least error on held-out classes; of those as good, the plainest: no hidden layer,
    fewer directions, more ridge. Raises ValueError for fewer than `LEAST_PAIRS` pairs."""
    n = len(classes)
    _check_pairs(old_nD, new_nF, n)
    target_nF = _unit(new_nF)
    codes_n = np.unique(np.array(classes, np.str_), return_inverse=True)[1]
    folds_n = codes_n % FOLDS if len(set(codes_n)) >= FOLDS else np.arange(n) % FOLDS
    errors: dict[tuple[int, float, float], float] = {}
    for width in HIDDEN:
        phi_nE = Lift(old_nD.shape[1], width, seed).apply(old_nD).astype(np.float64)
        for fold in range(FOLDS):
            inside, outside = folds_n != fold, folds_n == fold
            for ridge, kept, A_FE, b_F in _fits(phi_nE[inside], target_nF[inside]):
                found_nF = _unit(phi_nE[outside] @ A_FE.T + b_F)
                missed = float((1 - np.einsum("nf,nf->n", found_nF, target_nF[outside])).sum()) / n
                errors[width, ridge, kept] = errors.get((width, ridge, kept), 0.0) + missed
    least = min(errors.values())
    good = [choice for choice, error in errors.items() if error <= least * 1.01 + 1e-9]
    width, ridge, kept = min(good, key=lambda choice: (choice[0], choice[2], -choice[1]))
    return Choice(width, ridge, kept, errors[width, ridge, kept])


def fit_cross_map(
    old_nD: Floats, new_nF: Floats, classes: Sequence[str], seed: int = 0, choice: Choice | None = None
) -> CrossMap:
    """Fit the map to pairs of features of the same images, with settings that are given or chosen. ValueError as
    above."""
    _check_pairs(old_nD, new_nF, len(classes))
    choice = choice or choose_cross_map(old_nD, new_nF, classes, seed)
    lift = Lift(old_nD.shape[1], choice.width, seed)
    fits = _fits(lift.apply(old_nD).astype(np.float64), _unit(new_nF))
    A_FE, b_F = next((A, b) for r, k, A, b in fits if (r, k) == (choice.ridge, choice.kept))
    rank = int(np.linalg.matrix_rank(A_FE)) if choice.kept < 1 else min(A_FE.shape)
    return CrossMap(lift, A_FE.astype(np.float32), b_F.astype(np.float32), rank, choice.error)


def _check_pairs(old_nD: Floats, new_nF: Floats, n: int) -> None:
    if n < LEAST_PAIRS or len(old_nD) != n or len(new_nF) != n:
        raise ValueError(
            f"{n} classes of {len(old_nD)} and {len(new_nF)} features; a map needs {LEAST_PAIRS} pairs or more: give "
            "more images"
        )


def _fits(phi_nE: Float64s, target_nF: Float64s) -> Iterator[tuple[float, float, Float64s, Float64s]]:
    """(ridge, share kept, A [F, E], b [F]) of every candidate, by one decomposition of φ and one of predictions."""
    mean_E, mean_F = phi_nE.mean(axis=0), target_nF.mean(axis=0)
    U_nk, s_k, Vt_kE = np.linalg.svd(phi_nE - mean_E, full_matrices=False)
    variance = float((s_k**2).sum()) / max(1, len(s_k))
    projected_kF = U_nk.T @ (target_nF - mean_F)
    # Directions in which the predictions differ most, of the least ridge: more of it hardly turns them.
    shares_k = s_k**2 / (s_k**2 + RIDGES[0] * variance + 1e-12)
    directions_rF = np.linalg.svd(shares_k[:, None] * projected_kF, full_matrices=False)[2]
    for ridge in RIDGES:
        shrunk_kF = (s_k / (s_k**2 + ridge * variance + 1e-12))[:, None] * projected_kF
        for kept in KEPT:
            Q_rF = directions_rF[: max(1, round(kept * len(directions_rF)))]
            A_FE = Q_rF.T @ ((shrunk_kF @ Q_rF.T).T @ Vt_kE)
            yield ridge, kept, A_FE, mean_F - A_FE @ mean_E


def _unit(h_nF: Floats) -> Float64s:
    wide_nF = np.asarray(h_nF, np.float64)
    unit_nF: Float64s = wide_nF / np.maximum(np.linalg.norm(wide_nF, axis=1, keepdims=True), 1e-12)
    return unit_nF
