"""The discriminant head: solved in closed form from class sums, no step of gradient descent.

A gallery holds items whose class the head was solved with and items that have landed since. Directions in which the
known classes differ say little of others, so an embedding has two parts, each compared by cosine with the items of its
kind: the discriminant, for items of known classes, and whitening within classes in all D dimensions, for the rest.
`new_scale` and `new_bonus` make both scores comparable. Directions in which very many classes differ say enough of
others: then the discriminant may compare all items (`knows_all`), new ones with a bonus still, and the layer that the
trunk was trained behind may be a part of it (`layer`).
"""

# n items   C classes   D trunk feature   E = D + M entries of φ   k discriminant directions   d known part

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.eigen import leading, signed
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.lift import GRID, Float64s, Lift
from stream_odml.learn.packing import BadArtifact, Floats, pack, unpack
from stream_odml.learn.ranges import Count, Positive, Range, Share, check_fields
from stream_odml.learn.trained_layer import no_layer, with_layer
from stream_odml.learn.weighing import Weighing, direction_weights

Float32s = NDArray[np.float32]
_NOTHING = 1e-9
"""Share of φ's mean square under which a scatter is what rounding leaves."""
_BLAS = ThreadpoolController()


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How a head is solved. What is not chosen by `choose_head` has defaults that served four streams well."""

    discriminant: bool = True
    """Whether there is a known part; else every item is compared by the new one."""
    dim: Annotated[int, Range(at_least=1)] = 128
    """d, entries of the known part at most: discriminant directions, then leading directions of the rest."""
    width: Count = 0
    """M, random features of the lift that the known part uses."""
    shrinkage: Share = 0.8
    """s of the known part: share of the scatter within classes beside the identity."""
    new_shrinkage: Share = 0.8
    """s of the whitening for items of classes that the head does not know."""
    knows_all: bool = False
    """Whether the known part, where there is one, compares items of every class, known or not."""
    layer: Annotated[float, Range(at_least=0)] = 0.0
    """Variance of the trunk's trained layer beside that of the discriminant, in the known part; 0 leaves it out."""
    weight: Positive = 2.0
    """w of the discriminant direction that counts most beside the rest, in the known part."""
    weighing: Weighing = "ridge"
    """How much the others count beside it; `equal` of two images a class or fewer."""
    new_scale: Positive = 1.0
    """Factor of the cosine of an item of an unknown class: under 1 where known classes lie so close together that
    cosines with them are all near 1."""
    new_bonus: Annotated[float, Range()] = 0.38
    """Added to the cosine of an item of an unknown class, scaled."""
    bonus_among_all: Annotated[float, Range()] = 0.0
    """Added in place of both where the known part compares all: a head fits the classes that it was solved with, and
    finds others less often among them (calibrated stacking, Chao et al., ECCV 2016)."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, eq=False)
class DiscriminantHead:
    """Linear maps of φ, and the classes that it was solved with."""

    settings: HeadSettings
    lift: Lift
    names: tuple[str, ...]
    """Classes that the head was solved with, sorted. Of none or one, and where the settings have it so, there is no
    discriminant: nothing is known."""
    mean_E: Float64s
    """m."""
    known_dE: Float64s
    """z = known (φ - m); no row where nothing is known."""
    new_DD: Float64s
    """The same for items of other classes, on the first D entries of φ."""
    layer_lD: Float64s
    """The linear layer that the trunk was trained behind; no row where none is known."""

    def __post_init__(self) -> None:
        D, E = self.lift.dim, self.lift.out_dim
        if self.layer_lD.shape[1:] != (D,):
            raise ValueError(f"head of dimension {D} with a trained layer {self.layer_lD.shape}")
        if self.mean_E.shape != (E,) or self.known_dE.shape[1:] != (E,) or self.new_DD.shape[1:] != (D,):
            raise ValueError(
                f"head with mean {self.mean_E.shape}, maps {self.known_dE.shape} and {self.new_DD.shape}; "
                f"expected [{E}], [d, {E}] and [.., {D}]"
            )
        parts = (self.mean_E, self.known_dE, self.new_DD, self.layer_lD)
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("head with an entry that is not finite; solve it again from the sums")

    @property
    def known_dim(self) -> int:
        """Return d."""
        return len(self.known_dE)

    @property
    def dim(self) -> int:
        """Return the length of an embedding: both parts."""
        return len(self.known_dE) + len(self.new_DD)

    @property
    def new_scale(self) -> float:
        """Return the factor of the cosine of an item of an unknown class; 1 where one part compares all items."""
        return 1.0 if self.compares_all or not self.known_dim else self.settings.new_scale

    @property
    def new_bonus(self) -> float:
        """Return what is added to it then; 0 where every class is unknown."""
        if self.compares_all:
            return self.settings.bonus_among_all
        return self.settings.new_bonus if self.known_dim else 0.0

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def knows(self, name: str) -> bool:
        """Return whether items of a class are compared by the known part, without scale or bonus."""
        return bool(self.known_dim) and name in self._known

    @property
    def compares_all(self) -> bool:
        """Return whether the known part compares items of all other classes too."""
        return bool(self.known_dim) and self.settings.knows_all

    @property
    def slice_of_new(self) -> slice:
        """Return which entries of an embedding items of all other classes are compared by."""
        return slice(0, self.known_dim) if self.compares_all else slice(self.known_dim, self.dim)

    def embed(self, h_nD: Floats) -> Float32s:
        """Return z [n, dim]: the known part and the new part, each of length 1. What a query is, whatever its class."""
        phi_nE = self.lift.apply(h_nD)
        return np.concatenate(
            [self._part(phi_nE, self._known_map), self._part(phi_nE, self._new_map)], axis=1
        )

    def known_part(self, features: FeatureCodes) -> Float32s:
        """Return the vectors, unit length, [n, d], by which items of known classes are found."""
        return self._part(self.lift.apply(features.decode()), self._known_map)

    def new_part(self, features: FeatureCodes) -> Float32s:
        """Return the vectors, unit length, [n, D], of the other part."""
        plain = Lift(self.lift.dim)
        return self._part(plain.apply(features.decode()), self._new_map)

    def vectors_of_new(self, features: FeatureCodes) -> Float32s:
        """Return the vectors by which items of other classes are found: those of `slice_of_new`."""
        return self.known_part(features) if self.compares_all else self.new_part(features)

    def split(self, z_n: Floats) -> tuple[Floats, Floats]:
        """Return the known and the new part of embeddings."""
        return z_n[:, : self.known_dim], z_n[:, self.known_dim :]

    def direction(self, z_n: Floats) -> Float32s:
        """Return the directions of the features h that embeddings were made of, [n, D]: the new part is invertible,
        and the length that it lost follows from |h| = 1. A vector that a client keeps is so read by any head of its
        trunk: `newer.embed(older.direction(z))`. ValueError for vectors of another length than `dim`."""
        if z_n.ndim != 2 or z_n.shape[1] != self.dim:
            raise ValueError(
                f"embeddings of shape {z_n.shape} for a head of {self.dim}; the head that made them is needed"
            )
        m_D, ray_nD = self.mean_E[: self.lift.dim], self.split(z_n)[1].astype(np.float64) @ self._unwhitened.T
        # |m + t ray| = 1, of which one root is positive: the mean of unit vectors is no longer than 1.
        a_n, b_n = np.einsum("nd,nd->n", ray_nD, ray_nD), ray_nD @ m_D
        a_n[a_n == 0] = 1
        t_n = (-b_n + np.sqrt(np.maximum(b_n**2 + a_n * (1 - m_D @ m_D), 0))) / a_n
        unit_nD: Float32s = (m_D + t_n[:, None] * ray_nD).astype(np.float32)
        return unit_nD

    @cached_property
    def _unwhitened(self) -> Float64s:
        return np.asarray(np.linalg.inv(self.new_DD), np.float64)

    @cached_property
    def _known_map(self) -> tuple[Float32s, Float32s]:
        return _affine(self.known_dE, self.mean_E)

    @cached_property
    def _new_map(self) -> tuple[Float32s, Float32s]:
        return _affine(self.new_DD, self.mean_E[: self.lift.dim])

    @staticmethod
    def _part(phi_nE: Float32s, affine: tuple[Float32s, Float32s]) -> Float32s:
        weights_Ed, shift_d = affine
        z_nd = phi_nE[:, : len(weights_Ed)] @ weights_Ed
        z_nd -= shift_d
        return normalise_in_place(z_nd)

    def equals(self, other: DiscriminantHead, tolerance: float = 1e-6) -> bool:
        """Return whether it is the same head but for rounding, relative to the largest entry of each map."""
        if (self.settings, self.lift, self.names) != (other.settings, other.lift, other.names):
            return False
        parts = (
            (self.mean_E, other.mean_E),
            (self.known_dE, other.known_dE),
            (self.new_DD, other.new_DD),
            (self.layer_lD, other.layer_lD),
        )
        return all(
            a.shape == b.shape and bool((np.abs(a - b) <= tolerance * np.abs(b).max(initial=1.0)).all())
            for a, b in parts
        )

    def to_bytes(self) -> bytes:
        """Return bytes for `from_bytes`, in float64, so that the head that is read equals the one that was written."""
        return pack(
            "discriminant-head",
            {"mean": self.mean_E, "known": self.known_dE, "new": self.new_DD, "layer": self.layer_lD},
            settings=asdict(self.settings),
            lift=asdict(self.lift),
            names=self.names,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> DiscriminantHead:
        """Read the bytes of `to_bytes`. Raises BadArtifact where they are damaged."""
        _, a, meta = unpack(data, ("discriminant-head",))
        try:  # earlier releases wrote neither a weighing nor a layer
            settings = HeadSettings(**{"weighing": "equal", **meta["settings"]})
        except TypeError as error:
            raise BadArtifact(f"discriminant head of a newer release, or damaged: {error}") from error
        lift = Lift(**meta["lift"])
        layer_lD = a.get("layer", no_layer(lift.dim))
        return cls(settings, lift, tuple(meta["names"]), a["mean"], a["known"], a["new"], layer_lD)

    def again(self, sums: ClassSums) -> DiscriminantHead:
        """Return the head of other sums of the same trunk, solved as this one."""
        return solve_head(sums, self.settings, self.layer_lD)


def _one_thread() -> AbstractContextManager[Any]:
    """Limit BLAS to one thread: on cores that training and search share, its threads mostly wait for each other."""
    limit: AbstractContextManager[Any] = _BLAS.limit(limits=1, user_api="blas")
    return limit


def solve_head(
    sums: ClassSums, settings: HeadSettings | None = None, layer_lD: Float64s | None = None
) -> DiscriminantHead:
    """Solve a head from sums. `layer_lD`: the linear layer that the trunk was trained behind, where there is one. Every
    set of items has a head, the empty set too:

    No class: φ itself, compared by cosine. One class: whitening alone. One image a class, or classes of identical
    images: nothing is known of what should not count, and directions between classes are taken as they are.
    """
    return Solver(sums, layer_lD).head(settings or HeadSettings())


def whitening(sums: ClassSums, shrinkage: float) -> Float64s:
    """Return the map of the new part alone, W [D, D]: Wᵀ W is the inverse of the shrunk scatter within classes."""
    return Solver(sums.narrowed(0)).whitening(shrinkage)


class Solver:
    """Solves heads of the same sums with one settings after another; scatters and roots that they share once."""

    def __init__(self, sums: ClassSums, layer_lD: Float64s | None = None) -> None:
        self.sums = sums
        self.layer_lD = no_layer(sums.lift.dim) if layer_lD is None else layer_lD
        self._scatter, self._root = cache(self._solve_scatter), cache(self._solve_root)
        self._whitening, self._of_means = cache(self._solve_whitening), cache(self._solve_of_means)

    def head(self, s: HeadSettings) -> DiscriminantHead:
        """Return the head of these settings."""
        sums = self.sums.narrowed(s.width)
        D, E = sums.lift.dim, sums.lift.out_dim
        nothing = np.zeros((0, E))
        if not len(sums):
            return DiscriminantHead(s, sums.lift, (), np.zeros(E), nothing, np.eye(D), self.layer_lD)
        with _one_thread():
            known_dE = self._known_map(s, s.dim) if s.discriminant else nothing
            if s.layer and len(known_dE) and len(self.layer_lD):
                within_EE, between_EE = self._scatter(s.width)
                known_dE = with_layer(known_dE, self.layer_lD, s.layer, within_EE + between_EE, s.dim)
            new_DD = self._whitening(s.new_shrinkage)
        return DiscriminantHead(s, sums.lift, sums.names, sums.mean(), known_dE, new_DD, self.layer_lD)

    def discriminant(self, s: HeadSettings) -> Float64s:
        """Return the discriminant directions alone, [k, E]: the known part without what fills it up to `dim`."""
        with _one_thread():
            return self._known_map(s, max(1, min(s.dim, len(self.sums) - 1)))

    def whitening(self, shrinkage: float) -> Float64s:
        """Return the map of the new part alone, [D, D]."""
        with _one_thread():
            return self._whitening(shrinkage)

    def _solve_whitening(self, shrinkage: float) -> Float64s:
        L_DD = self._root(0, shrinkage)
        return _solved(L_DD, np.eye(len(L_DD)))

    def _known_map(self, s: HeadSettings, dim: int) -> Float64s:
        """Return the known part [d, E]: the directions in which class means differ most once whitened, of a length of
        `weight` or less, and up to `dim` the directions in which whitened images differ most beside them. No row where
        no two classes differ."""
        sums = self.sums.narrowed(s.width)
        E, floor = sums.lift.out_dim, _floor(sums)
        within_EE, between_EE = self._scatter(s.width)
        if len(sums) < 2 or float(between_EE.trace()) <= floor:
            return np.zeros((0, E))
        L_EE = self._root(s.width, s.shrinkage)
        dim = min(dim, E)
        variance_k, V_Ek = self._of_means(s.width, s.shrinkage, min(len(sums) - 1, dim))
        within = float(within_EE.trace())
        # Of two images a class or fewer too little is known of how they differ to weigh directions by it.
        unit = s.shrinkage * E / max(within, floor)
        enough = within > floor and sums.n_items > 2 * len(sums)
        weight_k = direction_weights(s.weighing if enough else "equal", variance_k, unit)
        directions_dE: Float64s = s.weight * (V_Ek * weight_k).T
        rest = dim - len(directions_dE)
        if rest and within > floor:
            beside_EE = _whitened(within_EE + between_EE, L_EE)
            beside_EE -= V_Ek @ (V_Ek.T @ beside_EE)
            beside_EE -= (beside_EE @ V_Ek) @ V_Ek.T
            variance_r, Q_Er = leading(beside_EE, rest)
            directions_dE = np.concatenate([directions_dE, Q_Er[:, variance_r > _NOTHING * variance_r[0]].T])
        # directions @ L⁻¹, by one solve with the transposed root.
        return np.ascontiguousarray(_solved(L_EE, directions_dE.T, transposed=True).T)

    def _solve_of_means(self, width: int, shrinkage: float, k: int) -> tuple[Float64s, Float64s]:
        """Return the k directions [E, k] in which whitened class means differ most, or fewer, and by how much [k]."""
        sums, L_EE = self.sums.narrowed(width), self._root(width, shrinkage)
        if 2 * len(sums) < sums.lift.out_dim:
            variance_k, V_Ek = _leading_of_means(sums, L_EE, k)
        else:
            variance_k, V_Ek = leading(_whitened(self._scatter(width)[1], L_EE), k)
        differ_k = variance_k > _NOTHING * variance_k[0]
        return variance_k[differ_k], V_Ek[:, differ_k]

    def _solve_root(self, width: int, shrinkage: float) -> Float64s:
        return _shrunk_root(self._scatter(width)[0], shrinkage, _floor(self.sums.narrowed(width)))

    def _solve_scatter(self, width: int) -> tuple[Float64s, Float64s]:
        return self.sums.narrowed(width).scatter()


def normalise_in_place(z_nd: Float32s) -> Float32s:
    """Give rows length 1, in place; rows of almost nothing become zero."""
    norm_n1 = np.linalg.norm(z_nd, axis=1, keepdims=True)
    norm_n1[norm_n1 <= 1e-12] = np.inf
    z_nd /= norm_n1
    return z_nd


def _floor(sums: ClassSums) -> float:
    """Return the trace of a scatter below which it is rounding error."""
    return _NOTHING * float(np.trace(sums.products_EE)) / GRID**2


def _shrunk_root(scatter_EE: Float64s, share: float, floor: float) -> Float64s:
    """Return lower L with L Lᵀ = (1 - s) I + s E S / trace S; the identity where nothing differs within classes."""
    E, trace = len(scatter_EE), float(scatter_EE.trace())
    if trace <= floor:
        return np.eye(E)
    shrunk_EE: Float64s = (share * E / trace) * scatter_EE
    shrunk_EE[np.diag_indices(E)] += 1 - share
    return np.asarray(np.linalg.cholesky(shrunk_EE), np.float64)


def _solved(L_EE: Float64s, right_Ek: Float64s, *, transposed: bool = False) -> Float64s:
    """Return L⁻¹ R, or L⁻ᵀ R."""
    import scipy.linalg  # who only reads a root solves nothing

    solved_Ek: Float64s = scipy.linalg.solve_triangular(
        L_EE, right_Ek, trans=int(transposed), lower=True, check_finite=False
    )
    return solved_Ek


def _whitened(scatter_EE: Float64s, L_EE: Float64s) -> Float64s:
    """Return L⁻¹ S L⁻ᵀ."""
    return _solved(L_EE, _solved(L_EE, scatter_EE).T)


def _leading_of_means(sums: ClassSums, L_EE: Float64s, k: int) -> tuple[Float64s, Float64s]:
    """Return `leading` of the scatter between few classes, from their means: no matrix of E x E is decomposed."""
    differ_CE = np.sqrt(sums.counts_C)[:, None] * (sums.class_means() - sums.mean())
    U_EC, deviation_C, _ = np.linalg.svd(_solved(L_EE, differ_CE.T), full_matrices=False)
    return deviation_C[:k] ** 2, signed(U_EC[:, :k])


def _affine(map_dE: Float64s, mean_E: Float64s) -> tuple[Float32s, Float32s]:
    """Return weights [E, d] and shift [d] in float32, the shift computed in float64."""
    return np.ascontiguousarray(map_dE.T, np.float32), (map_dE @ mean_E).astype(np.float32)
