"""The class bank: three vectors and a count per class, all that remains of a task. No image, no old model.

Entries are keyed (class, origin version), the version whose stage added them: a class that is learnt again gets a
second entry. `means` are in the space of `version` and move with it; `origin_means` never change. Where later stages
were whitened, one matrix per origin version holds the product of those transforms: an image that is erased is
subtracted from the means as it was added to them.
"""

# C entries   d embedding

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.packing import Array, Floats, pack, unpack

Float32s = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClassBank:
    """Statistics of every class learnt so far. Immutable: every change returns a new bank."""

    version: str | None
    """The version in whose space the moving means are; None for an empty bank."""
    names: tuple[str, ...]
    origins: tuple[str, ...]
    counts: NDArray[np.int64]
    origin_means: Float32s
    """b_c: mean raw g under the model of the origin version."""
    means: Float32s
    """m_c: the same mean as estimated under `version`."""
    directions: Float32s
    """u_c: direction of the mean z at first, later of m_c."""
    transforms: Mapping[str, Float32s] = field(default_factory=dict)
    """T [d, d] by origin version: the product of the whitening transforms since, so that m_c = T b_c + estimated drift;
    absent where there was none."""

    def __post_init__(self) -> None:
        C = len(self.names)
        rows = {len(self.origins), len(self.counts), *map(len, self._vectors().values())}
        if rows != {C} or len(set(self.keys)) != C:
            raise ValueError(
                f"bank with {C} names, other rows {sorted(rows)} and {len(set(self.keys))} different keys"
            )
        for name, vectors_Cd in self._vectors().items():
            if not np.isfinite(vectors_Cd).all():
                raise ValueError(f"bank with a {name} that is not finite")

    @classmethod
    def empty(cls, dim: int) -> ClassBank:
        """Return the bank of no class, from which a base stage starts."""
        none = np.empty((0, dim), np.float32)
        return cls(None, (), (), np.empty(0, np.int64), none, none, none)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dim(self) -> int:
        """Return d."""
        return int(self.means.shape[1])

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Return (class, origin version) of each entry."""
        return list(zip(self.names, self.origins, strict=True))

    def origins_in_order(self) -> list[str]:
        """Return the distinct origin versions, oldest entry first."""
        return list(dict.fromkeys(self.origins))

    def rows_of_origin(self, origin: str) -> NDArray[np.int64]:
        """Return the indices of the entries of an origin version."""
        return np.array([i for i, b in enumerate(self.origins) if b == origin], np.int64)

    def moved(self, drift_Cd: Floats, version: str, W_dd: Floats | None = None) -> ClassBank:
        """Return the bank with m_c <- W (m_c + drift_c) and u_c = m_c / |m_c|, in the space of `version`."""
        if drift_Cd.shape != self.means.shape:
            raise ValueError(f"drift of shape {drift_Cd.shape} for a bank of {self.means.shape}")
        moved, transforms = self.means + drift_Cd, self.transforms
        if W_dd is not None:
            moved = moved @ W_dd.T
            transforms = {
                origin: (W_dd @ transforms.get(origin, np.eye(self.dim))).astype(np.float32)
                for origin in self.origins_in_order()
            }
        means = moved.astype(np.float32)
        return replace(self, version=version, means=means, directions=_unit(means), transforms=transforms)

    def with_classes(
        self,
        names: Sequence[str],
        version: str,
        counts: NDArray[np.int64],
        mean_cd: Floats,
        mean_z_cd: Floats,
    ) -> ClassBank:
        """Return the bank with new entries of mean raw g and mean z under `version`; empty classes are skipped."""
        keep = np.flatnonzero(counts > 0)
        mean = mean_cd[keep].astype(np.float32)
        return ClassBank(
            version,
            self.names + tuple(names[i] for i in keep.tolist()),
            self.origins + (version,) * len(keep),
            np.concatenate([self.counts, counts[keep]]),
            np.concatenate([self.origin_means, mean]),
            np.concatenate([self.means, mean]),
            np.concatenate([self.directions, _unit(mean_z_cd[keep]).astype(np.float32)]),
            self.transforms,
        )

    def forget_item(self, name: str, origin: str, vector_d: Floats) -> ClassBank:
        """Return the bank without one image, given its raw g under the origin version. The means become those of the
        other images. The entry is removed with its last image; an unknown entry changes nothing."""
        if (name, origin) not in self.keys:
            return self
        i = self.keys.index((name, origin))
        n = int(self.counts[i])
        if n <= 1:
            return self.selected(np.delete(np.arange(len(self)), i))
        mean_d = self.origin_means[i].astype(np.float64)
        rest_d = mean_d + (mean_d - vector_d) / (n - 1)
        return self.corrected(np.array([i]), np.array([n - 1]), rest_d[None])

    def corrected(
        self, rows_r: NDArray[np.int64], counts_r: NDArray[np.int64], origin_rd: Floats
    ) -> ClassBank:
        """Return the bank with other counts and origin means in some rows; their estimated drift stays."""
        shift_rd = np.asarray(origin_rd, np.float64) - self.origin_means[rows_r]
        origins_r = np.array([self.origins[i] for i in rows_r])
        for origin, T_dd in self.transforms.items():
            shift_rd[origins_r == origin] = shift_rd[origins_r == origin] @ T_dd.T
        counts, origin_means = self.counts.copy(), self.origin_means.copy()
        means, directions = self.means.copy(), self.directions.copy()
        counts[rows_r], origin_means[rows_r] = counts_r, origin_rd
        means[rows_r] += shift_rd
        directions[rows_r] = _unit(means[rows_r])
        return replace(self, counts=counts, origin_means=origin_means, means=means, directions=directions)

    def to_bytes(self) -> bytes:
        """Return safetensors bytes for `from_bytes`."""
        arrays: dict[str, Array] = {"counts": self.counts, **self._vectors()}
        # The names on disk are those of the first release.
        arrays |= {f"turn {origin}": T_dd for origin, T_dd in self.transforms.items()}
        return pack("bank", arrays, version=self.version, names=self.names, births=self.origins)

    @classmethod
    def from_bytes(cls, data: bytes) -> ClassBank:
        """Read the bytes of `to_bytes`. Raises BadArtifact where they are damaged."""
        _, a, meta = unpack(data, ("bank",))
        rows = (a["counts"], a["birth_mean"], a["mean"], a["direction"])
        transforms = {n.removeprefix("turn "): T_dd for n, T_dd in a.items() if n.startswith("turn ")}
        return cls(meta["version"], tuple(meta["names"]), tuple(meta["births"]), *rows, transforms)

    def _vectors(self) -> dict[str, Float32s]:
        return {"birth_mean": self.origin_means, "mean": self.means, "direction": self.directions}

    def selected(self, rows: NDArray[np.int64]) -> ClassBank:
        """Return the bank of these entries alone."""
        names, origins = (tuple(of[i] for i in rows) for of in (self.names, self.origins))
        arrays = ("counts", "origin_means", "means", "directions")
        taken: dict[str, Any] = {name: getattr(self, name)[rows] for name in arrays}
        transforms = {origin: T_dd for origin, T_dd in self.transforms.items() if origin in origins}
        return replace(self, names=names, origins=origins, transforms=transforms, **taken)


def _unit(x_nd: Floats) -> Floats:
    norm = np.linalg.norm(x_nd, axis=1, keepdims=True)
    return np.asarray(np.where(norm > 1e-6, x_nd / np.maximum(norm, 1e-6), 0.0), dtype=x_nd.dtype)
