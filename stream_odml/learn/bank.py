"""The class bank: three vectors and a count a class, all that is kept of what was learnt. No image, no old model.

Entries are keyed (class, version of birth): a class that comes again gets a second entry. The moving means live in the
space of `version`; births never change. Where later stages were whitened, one matrix for each version of birth says
what that made of the means born there: an image that is forgotten must be taken out of them as it went in.
"""

# C entries   d embedding

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    turns: Mapping[str, Float32s] = field(default_factory=dict)
    """T [d, d] of a version of birth: the product of the whitenings since, so that m_c = T b_c + what was estimated;
    none where nothing was turned."""

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

    def moved(self, drift_Cd: Floats, version: str, W_dd: Floats | None = None) -> ClassBank:
        """Every m_c += drift_c, then m_c = W m_c, u_c = m_c / |m_c|; the means are then in the space of `version`."""
        if drift_Cd.shape != self.means.shape:
            raise ValueError(f"drift of shape {drift_Cd.shape} for a bank of {self.means.shape}")
        moved, turns = self.means + drift_Cd, self.turns
        if W_dd is not None:
            moved = moved @ W_dd.T
            turns = {
                birth: (W_dd @ turns.get(birth, np.eye(self.dim))).astype(np.float32)
                for birth in self.births_in_order()
            }
        means = moved.astype(np.float32)
        return replace(self, version=version, means=means, directions=_unit(means), turns=turns)

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
            self.turns,
        )

    def forget(self, name: str) -> ClassBank:
        """Without any entry of a class."""
        return self.kept(np.array([i for i, n in enumerate(self.names) if n != name], np.int64))

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
            return self.kept(np.delete(np.arange(len(self)), i))
        mean_d = self.birth_means[i].astype(np.float64)
        rest_d = mean_d + (mean_d - vector_d) / (n - 1)
        return self.corrected(np.array([i]), np.array([n - 1]), rest_d[None])

    def corrected(
        self, rows_r: NDArray[np.int64], counts_r: NDArray[np.int64], birth_rd: Floats
    ) -> ClassBank:
        """Entries of so many images and such means at birth; what was estimated of their drift since stays."""
        shift_rd = np.asarray(birth_rd, np.float64) - self.birth_means[rows_r]
        births_r = np.array([self.births[i] for i in rows_r])
        for birth, T_dd in self.turns.items():
            shift_rd[births_r == birth] = shift_rd[births_r == birth] @ T_dd.T
        counts, birth_means = self.counts.copy(), self.birth_means.copy()
        means, directions = self.means.copy(), self.directions.copy()
        counts[rows_r], birth_means[rows_r] = counts_r, birth_rd
        means[rows_r] += shift_rd
        directions[rows_r] = _unit(means[rows_r])
        return replace(self, counts=counts, birth_means=birth_means, means=means, directions=directions)

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
        arrays |= {f"turn {birth}": T_dd for birth, T_dd in self.turns.items()}
        return pack("bank", arrays, version=self.version, names=self.names, births=self.births)

    @classmethod
    def from_bytes(cls, data: bytes) -> ClassBank:
        """Inverse of `to_bytes`; BadArtifact when damaged."""
        _, a, meta = unpack(data, ("bank",))
        rows = (a["counts"], a["birth_mean"], a["mean"], a["direction"])
        turns = {name.removeprefix("turn "): T_dd for name, T_dd in a.items() if name.startswith("turn ")}
        return cls(meta["version"], tuple(meta["names"]), tuple(meta["births"]), *rows, turns)

    def _vectors(self) -> dict[str, Float32s]:
        return {"birth_mean": self.birth_means, "mean": self.means, "direction": self.directions}

    def kept(self, rows: NDArray[np.int64]) -> ClassBank:
        """Of these entries alone."""
        births = tuple(self.births[i] for i in rows)
        return ClassBank(
            self.version,
            tuple(self.names[i] for i in rows),
            births,
            self.counts[rows],
            self.birth_means[rows],
            self.means[rows],
            self.directions[rows],
            {birth: T_dd for birth, T_dd in self.turns.items() if birth in births},
        )


def _unit(x_nd: Floats) -> Floats:
    norm = np.linalg.norm(x_nd, axis=1, keepdims=True)
    return np.asarray(np.where(norm > 1e-6, x_nd / np.maximum(norm, 1e-6), 0.0), dtype=x_nd.dtype)
