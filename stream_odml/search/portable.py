"""The way from one version's vectors into another's space, as arrays for whoever has numpy alone.

A client that keeps vectors of its own brings them along by itself: no image, no model, no request for each vector.
"""

# d what a version's vectors have   D trunk feature

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.learn.drift import AffineMap, ChainMap, DriftMap, IdentityMap, KernelMap
from stream_odml.search.space import Space
from stream_odml.store.versions import VersionTree

Arrays = Mapping[str, NDArray[np.floating[Any]]]
Step = tuple[str, Arrays]
"""What is done, and with which arrays; the page `docs/howto/query-vectors.md` has the twenty lines that do it."""


@dataclass(frozen=True, eq=False)
class PortableMap:
    """Steps from vectors that version `start` made into the space of `end`."""

    start: str
    end: str
    steps: tuple[Step, ...]

    def to_npz(self) -> bytes:
        """Return the file: `from`, `to`, `steps` (names in order) and of step i its arrays as `i.name`. No pickle."""
        arrays: dict[str, Any] = {
            f"{number}.{name}": np.asarray(array, np.float32)
            for number, (_, parts) in enumerate(self.steps)
            for name, array in parts.items()
        }
        names = np.array([kind for kind, _ in self.steps], dtype="U16")
        out = io.BytesIO()
        np.savez(out, **{"from": np.array(self.start), "to": np.array(self.end), "steps": names, **arrays})
        return out.getvalue()


def portable_map(space: Space, tree: VersionTree, start: str, end: str) -> PortableMap:
    """Return the way between two versions that `tree` has; `space`: of the served one. Raises UnknownVersion for a
    version whose head retention has dropped, ValueError for a map that has no such form."""
    drift = space.mapper.get(tree, start, end)
    if space.head_of is None:
        return PortableMap(start, end, (*_drift_steps(drift, 1.0), _unit(0)))
    before, after = space.head_of(start), space.head_of(end)
    if start == end:
        return PortableMap(start, end, (_unit(after.known_dim),))
    moved = _drift_steps(drift, space.length_of(tree, start))
    return PortableMap(start, end, (*_feature_steps(before), *moved, *_head_steps(after)))


def _feature_steps(head: DiscriminantHead) -> Iterator[Step]:
    """Yield the steps of `DiscriminantHead.direction`: from an embedding to the direction of its feature."""
    D = head.lift.dim
    A = np.zeros((D, head.dim))
    A[:, head.known_dim :] = np.linalg.inv(head.new_DD)
    yield "affine", {"A": A, "b": np.zeros(D)}
    yield "ray", {"m": head.mean_E[:D]}


def _head_steps(head: DiscriminantHead) -> Iterator[Step]:
    """Yield the steps from a feature to its embedding, as `DiscriminantHead.embed`."""
    D, known = head.lift.dim, head.known_dim
    yield _unit(0)
    if head.lift.width:
        yield "lift", {"R": head.lift.matrix / 32.0}
    A = np.zeros((head.dim, head.lift.out_dim))
    A[:known], A[known:, :D] = head.known_dE, head.new_DD
    yield "affine", {"A": A, "b": -A @ head.mean_E}
    yield _unit(known)


def _unit(known: int) -> Step:
    """Give each part of a vector length 1: the first `known` entries, and the rest."""
    return "unit", {"ends": np.array([float(known)] if known else [])}


def _drift_steps(drift: DriftMap, length: float) -> Iterator[Step]:
    """Yield the links of a drift map; the first of them of vectors that are longer by a factor than those that come."""
    for link in drift.links if isinstance(drift, ChainMap) else (drift,):
        if isinstance(link, AffineMap):
            yield "affine", {"A": link.A * length, "b": link.b}
        elif isinstance(link, KernelMap):
            yield link.kernel, _kernel(link, length)
        elif not isinstance(link, IdentityMap):
            raise ValueError(
                f"a {type(link).__name__} lies on the way, a drift map which numpy alone cannot apply; send vectors "
                "with their version to POST /v1/search, or embed the images again"
            )
        length = 1.0


def _kernel(link: KernelMap, length: float) -> Arrays:
    d = link.centres_md.shape[1]
    base = link.base or AffineMap(np.eye(d), np.zeros(d))
    lengths_m1 = np.linalg.norm(link.centres_md, axis=1, keepdims=True)
    return {
        "A": base.A * length,
        "b": base.b,
        "centres": link.centres_md / np.maximum(lengths_m1, 1e-6),
        "residuals": link.residuals_md,
        "width": np.array(link.width),
        "floor": np.array(link.floor),
    }
