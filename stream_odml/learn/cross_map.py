"""Maps trunk features of one model to those of another, of any length: when the backbone is changed, and no image of
most items is at hand.

h_new ~ g u + A φ(u) + b + o_c, where u is the direction of an old feature. g, a factor for each entry, is there where
both models have the same entries (the same network at another size, or trained further) and that pays. φ is u whitened
within classes, and beside it random features after a ReLU where they pay: a network of one hidden layer that is fitted
in closed form. o_c is what the pairs of the item's class differ by, drawn to zero where they are few. What pays is what
pairs held out of the fit say, compared as the new model's head will: whitened within classes.

A predicted item deviates from its class by what the map knows and by what it makes up; `drawn_to` moves items towards
the mean of their class.
"""

# n pairs   D old feature   E entries of φ   F new feature   r directions kept   C classes with pairs

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import whitening
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.learn.packing import Floats, pack, unpack
from stream_odml.zero import unit_rows

FOLDS = 3
HIDDEN = 512
RIDGES = (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0)
"""Candidates, in units of φ's mean variance."""
KEPT_SHARES = (0.5, 0.25)
"""Candidates: share of the new feature's directions that are predicted, of the most variance."""
CLASS_WEIGHT = 0.3
"""Prior deviation of o_c, in units of that of φ."""
MIN_PAIRS = 16
SHRINKAGE = 0.8
_PAYS = 0.99
"""A richer map is chosen where its error is below this share of the plainer one's."""
Float64s = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Front:
    """Whitening of old features: u -> unit(W (u - m))."""

    W_DD: NDArray[np.float32]
    m_D: NDArray[np.float32]

    def apply(self, h_nD: Floats) -> NDArray[np.float32]:
        """Return whitened directions [n, D]."""
        return np.asarray((_unit(h_nD) - self.m_D) @ self.W_DD.T, np.float32)


@dataclass(frozen=True)
class Choice:
    """Settings of a map."""

    width: int
    keeps_entries: bool
    """Whether there is a factor for each entry."""
    class_weight: float
    ridge: float
    kept: float
    """Share of the directions."""
    error: float
    """1 - cosine of what the new head compares, on pairs held out of the fit."""


@dataclass(frozen=True, eq=False)
class CrossMap:
    """u -> g u + A φ(u) + b + o_c on directions: what it gives is of length about 1."""

    lift: Lift
    front: Front
    A_FE: NDArray[np.float32]
    b_F: NDArray[np.float32]
    names: tuple[str, ...]
    """Classes with an offset."""
    offsets_CF: NDArray[np.float32]
    rank: int
    error: float
    """See `Choice`."""
    gain_F: NDArray[np.float32]
    """Empty where entries are not kept."""
    centres_CF: NDArray[np.float32]
    """To which items of the named classes are drawn; empty before `drawn_to`."""
    within: float = 1.0
    """Share of an item's deviation from the centre of its class that is left."""

    def apply(self, h_nD: Floats, classes: Sequence[str] = ()) -> NDArray[np.float32]:
        """Return predicted features [n, F] of old ones [n, D], of items of these classes where they are known."""
        phi_nE = self.lift.apply(self.front.apply(h_nD))
        mapped_nF: NDArray[np.float32] = phi_nE @ self.A_FE.T + self.b_F
        if len(self.gain_F):
            mapped_nF += self.gain_F * _unit(h_nD).astype(np.float32)
        if self.names and len(classes):
            place = {name: at for at, name in enumerate(self.names)}
            rows = np.array([place.get(name, -1) for name in classes])
            named_n, rows = rows >= 0, rows[rows >= 0]
            mapped_nF[named_n] += self.offsets_CF[rows]
            if self.within < 1:
                centre_nF = self.centres_CF[rows]
                mapped_nF[named_n] = centre_nF + self.within * (mapped_nF[named_n] - centre_nF)
        return mapped_nF

    def drawn_to(self, centres: Mapping[str, NDArray[np.float32]], within: float) -> CrossMap:
        """Return the map that leaves `within` of an item's deviation from the centre of its class."""
        names, known = tuple(sorted(centres)), dict(zip(self.names, self.offsets_CF, strict=True))
        none_F = np.zeros(len(self.b_F), np.float32)
        offsets, means = [known.get(name, none_F) for name in names], [centres[name] for name in names]
        shape = (len(names), len(none_F))
        offsets_CF, centres_CF = (np.array(part, np.float32).reshape(shape) for part in (offsets, means))
        return replace(self, names=names, offsets_CF=offsets_CF, centres_CF=centres_CF, within=within)

    def to_bytes(self) -> bytes:
        """Return bytes for `from_bytes`."""
        arrays = {"A": self.A_FE, "b": self.b_F, "offsets": self.offsets_CF, "gain": self.gain_F}
        arrays |= {"front": self.front.W_DD, "mean": self.front.m_D, "centres": self.centres_CF}
        about = {"lift": asdict(self.lift), "rank": self.rank, "error": self.error, "names": list(self.names)}
        about["within"] = self.within
        return pack("cross-map", arrays, **about)

    @staticmethod
    def from_bytes(data: bytes) -> CrossMap:
        """Read the bytes of `to_bytes`. Raises BadArtifact where they are damaged."""
        _, arrays, meta = unpack(data, ("cross-map",))
        return CrossMap(
            Lift(**meta["lift"]),
            Front(arrays["front"], arrays["mean"]),
            arrays["A"],
            arrays["b"],
            tuple(meta["names"]),
            arrays["offsets"],
            int(meta["rank"]),
            float(meta["error"]),
            arrays["gain"],
            arrays["centres"],
            float(meta["within"]),
        )


def choose_cross_map(old_nD: Floats, new_nF: Floats, classes: Sequence[str], seed: int = 0) -> Choice:
    """Return the settings with the least error on held-out pairs; offsets of classes, then entries that are kept,
    then a hidden layer, are tried and taken where they pay. Raises ValueError for fewer than `MIN_PAIRS` pairs."""
    _check_pairs(old_nD, new_nF, len(classes))
    held_out = _HeldOut(old_nD, new_nF, classes, seed)
    all_kept = [(ridge, 1.0) for ridge in RIDGES]
    best = held_out.best(Choice(0, False, 0.0, 0.0, 1.0, np.inf), all_kept)
    same: list[dict[str, Any]] = [{"keeps_entries": True}] if old_nD.shape[1] == new_nF.shape[1] else []
    for richer in ({"class_weight": CLASS_WEIGHT}, *same, {"width": HIDDEN}):
        tried = held_out.best(replace(best, **richer), all_kept)
        best = tried if tried.error < _PAYS * best.error else best
    fewer = held_out.best(best, [(best.ridge, kept) for kept in KEPT_SHARES])
    return fewer if fewer.error < _PAYS * best.error else best


def fit_cross_map(
    old_nD: Floats, new_nF: Floats, classes: Sequence[str], seed: int = 0, choice: Choice | None = None
) -> CrossMap:
    """Fit the map to pairs of features of the same images, by given or chosen settings: ValueError as above."""
    choice = choice or choose_cross_map(old_nD, new_nF, classes, seed)
    lift = Lift(old_nD.shape[1], choice.width, seed)
    front = _front(old_nD, classes)
    phi_nE = lift.apply(front.apply(old_nD)).astype(np.float64)
    fits = _Fits(choice, phi_nE, _unit(old_nD), _unit(new_nF), np.array(classes, np.str_))
    B_FX = fits.weights(choice.ridge, choice.kept).T @ fits.Vt_kX
    b_F = fits.mean_F - B_FX @ fits.mean_X
    E = phi_nE.shape[1]
    rank = int(np.linalg.matrix_rank(B_FX[:, :E])) if choice.kept < 1 else min(len(B_FX), E)
    parts = B_FX[:, :E], b_F, fits.scale * B_FX[:, E:].T
    A_FE, b_F, offsets_CF = (part.astype(np.float32) for part in parts)
    none_CF = np.empty((0, len(b_F)), np.float32)
    return CrossMap(
        lift,
        front,
        A_FE,
        b_F,
        tuple(fits.names),
        offsets_CF,
        rank,
        choice.error,
        fits.gain_F.astype(np.float32),
        none_CF,
    )


def _gain(old_nF: Float64s, new_nF: Float64s) -> Float64s:
    """Return factor of each entry by which the old one explains most of the new one."""
    apart_nF = old_nF - old_nF.mean(axis=0)
    squares_F = (apart_nF**2).sum(axis=0)
    return np.asarray((apart_nF * new_nF).sum(axis=0) / np.maximum(squares_F, 1e-12), np.float64)


def _check_pairs(old_nD: Floats, new_nF: Floats, n: int) -> None:
    if n < MIN_PAIRS or len(old_nD) != n or len(new_nF) != n:
        raise ValueError(
            f"{n} classes of {len(old_nD)} and {len(new_nF)} features; a map needs {MIN_PAIRS} pairs or more: give "
            "more images"
        )


class _HeldOut:
    """Pairs in folds: what maps miss of those that they were not fitted to, compared as the new model's head does, by
    directions that are whitened within classes."""

    def __init__(self, old_nD: Floats, new_nF: Floats, classes: Sequence[str], seed: int) -> None:
        self._fold_n = np.random.default_rng(seed).permutation(len(classes)) % FOLDS
        self._name_n, self._seed = np.array(classes, np.str_), seed
        self._front_nD = _front(old_nD, classes).apply(old_nD)
        self._old_nD, self._target_nF = _unit(old_nD), _unit(new_nF)
        self._W_FF, self._mean_F = _whitening(new_nF, classes), self._target_nF.mean(axis=0)
        self._white_nF = self._whitened(self._target_nF)

    def best(self, like: Choice, candidates: Sequence[tuple[float, float]]) -> Choice:
        """Return the ridge and share of directions with the least error, for settings that are given otherwise."""
        n, D = self._front_nD.shape
        phi_nE = Lift(D, like.width, self._seed).apply(self._front_nD).astype(np.float64)
        errors = dict.fromkeys(candidates, 0.0)
        for fold in range(FOLDS):
            out_n = self._fold_n == fold
            fits = _Fits(like, *(a[~out_n] for a in (phi_nE, self._old_nD, self._target_nF, self._name_n)))
            hot_nC = fits.scale * (self._name_n[out_n, None] == np.array(fits.names, np.str_))
            asked_nk = (np.concatenate([phi_nE[out_n], hot_nC], axis=1) - fits.mean_X) @ fits.Vt_kX.T
            kept_nF = fits.gain_F * self._old_nD[out_n] if len(fits.gain_F) else np.zeros(1)
            for candidate in candidates:
                found_nF = asked_nk @ fits.weights(*candidate) + fits.mean_F + kept_nF
                white_nF = self._whitened(_unit(found_nF))
                missed = float((1 - np.einsum("nf,nf->n", white_nF, self._white_nF[out_n])).sum())
                errors[candidate] += missed / n
        ridge, kept = min(candidates, key=errors.__getitem__)
        return replace(like, ridge=ridge, kept=kept, error=errors[ridge, kept])

    def _whitened(self, unit_nF: Float64s) -> Float64s:
        return _unit((unit_nF - self._mean_F) @ self._W_FF.T)


def _front(old_nD: Floats, classes: Sequence[str]) -> Front:
    mean_D = _unit(old_nD).mean(axis=0).astype(np.float32)
    return Front(_whitening(old_nD, classes).astype(np.float32), mean_D)


def _whitening(h_nD: Floats, classes: Sequence[str]) -> Float64s:
    codes = encode(np.asarray(h_nD, np.float32))
    return whitening(ClassSums.of(Lift(h_nD.shape[1]), codes, list(classes)), SHRINKAGE)


class _Fits:
    """All maps of one kind: ridge regressions of targets on φ, by one decomposition. Behind φ stands an entry for each
    class: ridge draws offsets of classes to zero, the more the fewer the pairs."""

    def __init__(
        self, like: Choice, phi_nE: Float64s, old_nD: Float64s, target_nF: Float64s, name_n: NDArray[np.str_]
    ) -> None:
        self.scale = like.class_weight * float(np.sqrt(phi_nE.var(axis=0).sum()))
        self.names: list[str] = []
        self.gain_F = np.empty(0)
        if like.keeps_entries:
            self.gain_F = _gain(old_nD, target_nF)
            target_nF = target_nF - self.gain_F * old_nD
        if like.class_weight:
            names, code_n = np.unique(name_n, return_inverse=True)
            hot_nC = np.zeros((len(phi_nE), len(names)))
            hot_nC[np.arange(len(phi_nE)), code_n] = self.scale
            self.names, phi_nE = names.tolist(), np.concatenate([phi_nE, hot_nC], axis=1)
        self.mean_X, self.mean_F = phi_nE.mean(axis=0), target_nF.mean(axis=0)
        U_nk, self._s_k, self.Vt_kX = _svd(phi_nE - self.mean_X)
        self._variance = float((self._s_k**2).sum()) / max(1, len(self._s_k))
        self._projected_kF = U_nk.T @ (target_nF - self.mean_F)

    def weights(self, ridge: float, kept: float) -> Float64s:
        """Return [k, F]: from x in the directions Vt to targets, of which a share of the directions is kept."""
        shrunk_kF: Float64s = (self._s_k / self._shrunk(ridge))[:, None] * self._projected_kF
        if kept == 1:
            return shrunk_kF
        Q_rF = self._directions[: max(1, round(kept * len(self._directions)))]
        return np.asarray((shrunk_kF @ Q_rF.T) @ Q_rF, np.float64)

    @cached_property
    def _directions(self) -> Float64s:
        """Directions in which predictions differ most, of the least ridge: more of it hardly turns them."""
        return _svd((self._s_k**2 / self._shrunk(RIDGES[0]))[:, None] * self._projected_kF)[2]

    def _shrunk(self, ridge: float) -> Float64s:
        return np.asarray(self._s_k**2 + ridge * self._variance + 1e-12, np.float64)


def _svd(a_nX: Float64s) -> tuple[Float64s, Float64s, Float64s]:
    """Return U, s and Vᵀ by the smaller of the two matrices of products: a fraction of the time, and what its rounding
    loses is far below the least ridge."""
    n, X = a_nX.shape
    squares_k, V = np.linalg.eigh(a_nX @ a_nX.T if n <= X else a_nX.T @ a_nX)
    squares_k, V = squares_k[::-1], V[:, ::-1]
    some = squares_k > 1e-12 * max(float(squares_k.max(initial=0.0)), 1e-300)
    s_k, V = np.sqrt(squares_k[some]), V[:, some]
    if n <= X:
        return V, s_k, (V.T @ a_nX) / s_k[:, None]
    return (a_nX @ V) / s_k, s_k, V.T


def _unit(h_nF: Floats | Float64s) -> Float64s:
    return unit_rows(np.asarray(h_nF, np.float64))
