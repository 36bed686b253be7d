"""What a head sees of a stored feature: its direction, and beside it, where a lift is asked for, fixed random features.

φ(h) = [u, ReLU(u R)], u = h / |h| on a grid of integers. All of it is integer arithmetic that float64 and float32 carry
without rounding, so φ of a stored feature is the same to the last bit on every machine and in every batch, and
so are sums of it.
"""

# n rows   D trunk feature   M random features   E = D + M

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.packing import Floats
from stream_odml.zero import unit_rows

Float64s = NDArray[np.float64]
GRID = 2.0**15
"""φ in units of 1 / GRID: finer than 8-bit codes by far, and sums of products of 8 million items still fit float64."""
_MATRIX_GRID = 32.0


@dataclass(frozen=True)
class Lift:
    """Computes φ of a trunk's features. `width` M random features from `seed`; a narrower lift of the same seed is a
    prefix of a wider one."""

    dim: int
    """D."""
    width: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim < 1 or self.width < 0 or self.seed < 0:
            raise ValueError(
                f"lift of dim {self.dim}, width {self.width}, seed {self.seed}; "
                "expected a dim of at least 1, a width and a seed of at least 0"
            )

    @property
    def out_dim(self) -> int:
        """Return E = D + M."""
        return self.dim + self.width

    @cached_property
    def matrix(self) -> NDArray[np.float32]:
        """Return R [D, M]: integers, normal with a deviation of 32, a column for each random feature."""
        random = np.random.default_rng([self.seed, 0x11F7])
        # Column by column, so that a wider lift begins with the columns of a narrower one.
        columns_MD = random.standard_normal((self.width, self.dim), np.float32)
        return np.ascontiguousarray(np.rint(columns_MD * np.float32(_MATRIX_GRID)).T)

    def integers(self, features: FeatureCodes) -> Float64s:
        """Return GRID * φ of stored features, whole numbers, [n, E]. ValueError for another D."""
        if features.dim != self.dim:
            raise ValueError(
                f"features of dimension {features.dim} for a lift of {self.dim}; one trunk's are needed"
            )
        codes_nD = features.codes_nD.astype(np.float64)
        # Sums of squares of codes: whole numbers for int8, and within float64's digits for float16.
        norm_n = np.sqrt(np.einsum("nd,nd->n", codes_nD, codes_nD))
        unit_nD: Float64s = np.rint(codes_nD * (GRID / np.where(norm_n > 0, norm_n, np.inf))[:, None])
        if not self.width:
            return unit_nD
        # Whole numbers whose partial sums stay far below 2^24, which float32 holds without rounding.
        lifted_nM = np.maximum(unit_nD.astype(np.float32) @ self.matrix, 0)
        out_nE = np.empty((len(unit_nD), self.out_dim))
        out_nE[:, : self.dim] = unit_nD
        np.rint(lifted_nM * np.float32(1 / _MATRIX_GRID), out=out_nE[:, self.dim :])
        return out_nE

    def apply(self, h_nD: Floats) -> NDArray[np.float32]:
        """Return φ of features that need not be stored (a query's), float32 [n, E]; `integers` to within the grid."""
        h_nD = np.asarray(h_nD, np.float32)
        if h_nD.ndim != 2 or h_nD.shape[1] != self.dim:
            raise ValueError(
                f"features of shape {h_nD.shape} for a lift of dimension {self.dim}; expected [n, D]"
            )
        unit_nD: NDArray[np.float32] = unit_rows(h_nD)
        if not self.width:
            return unit_nD
        lifted_nM = np.maximum(unit_nD @ self.matrix, 0) / np.float32(_MATRIX_GRID)
        return np.concatenate([unit_nD, lifted_nM], axis=1, dtype=np.float32)
