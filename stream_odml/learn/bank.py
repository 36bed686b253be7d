"""The class bank: three vectors and a count a class, all that is kept of what was learnt. No image, no
old model.

Entries are keyed (class, version of birth): a class that comes again gets a second entry. The moving
means live in
the space of `version`; births never change.
"""

# C entries   d embedding

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.packing import Array, Floats, pack, unpack

Float32s = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClassBank:
    """Immutable: every change gives a new bank."""

    version: str | None
    """The version in whose space the moving means are; None for an empty bank."""
    names: tuple[str, ...]
    births: tuple[str, ...]
    counts: NDArray[np.int64]
    birth_means: Float32s
    """b_c: mean raw g under the model of birth."""
    means: Float32s
    """m_c: the same mean as it is estimated under `version`."""
    directions: Float32s
    """u_c: direction of the mean z at birth, later of m_c."""

    def __post_init__(self) -> None:
        C = len(self.names)
        rows = {len(self.births), len(self.counts), *map(len, self._vectors().values())}
        if rows != {C} or len(set(self.keys)) != C:
            raise ValueError(
                f"bank with {C} names, other rows {sorted(rows)} and {len(set(self.keys))} different keys"
            )
        for name, vectors_Cd in self._vectors().items():
            if not np.isfinite(vectors_Cd).all():
                raise ValueError(f"bank with a {name} that is not finite")

    @classmethod
    def empty(cls, dim: int) -> ClassBank:
        """Of no class: what a base stage starts from."""
        none = np.empty((0, dim), np.float32)
        return cls(None, (), (), np.empty(0, np.int64), none, none, none)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dim(self) -> int:
        """d."""
        return int(self.means.shape[1])

    @property
    def keys(self) -> list[tuple[str, str]]:
        """(class, version of birth) of each entry."""
        return list(zip(self.names, self.births, strict=True))

    def births_in_order(self) -> list[str]:
        """The different versions of birth, oldest entry first."""
        return list(dict.fromkeys(self.births))

    def rows_born_at(self, birth: str) -> NDArray[np.int64]:
        """Indices of the entries born at a version."""
        return np.array([i for i, b in enumerate(self.births) if b == birth], np.int64)

    def moved(self, drift_Cd: Floats, version: str) -> ClassBank:
        """Every m_c += drift_c, u_c = m_c / |m_c|; the means are then in the space of `version`."""
        if drift_Cd.shape != self.means.shape:
            raise ValueError(f"drift of shape {drift_Cd.shape} for a bank of {self.means.shape}")
        mean = (self.means + drift_Cd).astype(np.float32)
        return replace(self, version=version, means=mean, directions=_unit(mean))

    def born(
        self,
        names: Sequence[str],
        version: str,
        counts: NDArray[np.int64],
        mean_cd: Floats,
        mean_z_cd: Floats,
    ) -> ClassBank:
        """With new entries of mean raw g and mean z under `version`; classes without an image are left
        out."""
        keep = np.flatnonzero(counts > 0)
        mean = mean_cd[keep].astype(np.float32)
        return ClassBank(
            version,
            self.names + tuple(names[i] for i in keep.tolist()),
            self.births + (version,) * len(keep),
            np.concatenate([self.counts, counts[keep]]),
            np.concatenate([self.birth_means, mean]),
            np.concatenate([self.means, mean]),
            np.concatenate([self.directions, _unit(mean_z_cd[keep]).astype(np.float32)]),
        )

    def forget(self, name: str) -> ClassBank:
        """Without any entry of a class."""
        return self._rows(np.array([i for i, n in enumerate(self.names) if n != name], np.int64))

    def forget_item(self, name: str, birth: str, vector_d: Floats) -> ClassBank:
        """Without one image, given its raw g under the version of birth: the means become those of the
        others.

        The entry goes with its last image; an unknown entry changes nothing.
        """
        if (name, birth) not in self.keys:
            return self
        i = self.keys.index((name, birth))
        n = int(self.counts[i])
        if n <= 1:
            return self._rows(np.delete(np.arange(len(self)), i))
        birth_mean, mean, direction = self.birth_means.copy(), self.means.copy(), self.directions.copy()
        counts = self.counts.copy()
        shift = (birth_mean[i].astype(np.float64) - vector_d) / (n - 1)
        birth_mean[i] += shift
        mean[i] += shift  # the estimated drift m - b stays
        direction[i] = _unit(mean[i][None])[0]
        counts[i] = n - 1
        return replace(self, counts=counts, birth_means=birth_mean, means=mean, directions=direction)

    def merge(self) -> tuple[list[str], NDArray[np.int64], Float32s]:
        """(class names, counts, means [classes, d]): one moving mean a class, its births merged by count."""
        names = list(dict.fromkeys(self.names))
        index = {name: i for i, name in enumerate(names)}
        counts = np.zeros(len(names), np.int64)
        sums = np.zeros((len(names), self.dim), np.float64)
        for name, n, mean in zip(self.names, self.counts, self.means, strict=True):
            counts[index[name]] += n
            sums[index[name]] += n * mean.astype(np.float64)
        return names, counts, (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        arrays: dict[str, Array] = {"counts": self.counts, **self._vectors()}
        return pack("bank", arrays, version=self.version, names=self.names, births=self.births)

    @classmethod
    def from_bytes(cls, data: bytes) -> ClassBank:
        """Inverse of `to_bytes`; BadArtifact when damaged."""
        _, a, meta = unpack(data, ("bank",))
        rows = (a["counts"], a["birth_mean"], a["mean"], a["direction"])
        return cls(meta["version"], tuple(meta["names"]), tuple(meta["births"]), *rows)

    def _vectors(self) -> dict[str, Float32s]:
        return {"birth_mean": self.birth_means, "mean": self.means, "direction": self.directions}

    def _rows(self, keep: NDArray[np.int64]) -> ClassBank:
        return ClassBank(
            self.version,
            tuple(self.names[i] for i in keep),
            tuple(self.births[i] for i in keep),
            self.counts[keep],
            self.birth_means[keep],
            self.means[keep],
            self.directions[keep],
        )


def _unit(x_nd: Floats) -> Floats:
    norm = np.linalg.norm(x_nd, axis=1, keepdims=True)
    return np.asarray(np.where(norm > 1e-6, x_nd / np.maximum(norm, 1e-6), 0.0), dtype=x_nd.dtype)
