"""Drift maps: how a stored raw embedding of one version is read in the space of another, without its image."""

# n vectors   d embedding   m centres of a kernel map

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.packing import Floats, pack, unpack
from stream_odml.learn.settings import KernelName

Float64s = NDArray[np.float64]
_KINDS = ("identity", "affine", "kernel")
_BLOCK = 4096


class DriftMap(Protocol):
    """Raw vectors of one space to another; float32 in, float32 out (float64 likewise)."""

    def apply(self, g_nd: Floats) -> Floats:
        """Map vectors [n, d], same dtype. Raises ValueError for another d."""
        ...

    def to_bytes(self) -> bytes:
        """Return bytes for `drift_map_from_bytes`."""
        ...


@dataclass(frozen=True)
class IdentityMap:
    """Leaves vectors where they are."""

    def apply(self, g_nd: Floats) -> Floats:
        return g_nd

    def to_bytes(self) -> bytes:
        return pack("identity", {})


@dataclass(frozen=True, eq=False)
class AffineMap:
    """g -> A g + b, held and composed in float64."""

    A: Float64s
    b: Float64s

    def __post_init__(self) -> None:
        d = len(self.b)
        if self.A.shape != (d, d) or not (np.isfinite(self.A).all() and np.isfinite(self.b).all()):
            raise ValueError(
                f"affine map of A {self.A.shape}, b {self.b.shape}: expected finite [d, d] and [d]"
            )

    def apply(self, g_nd: Floats) -> Floats:
        _check_dim(g_nd, len(self.b))
        out = np.empty_like(g_nd)
        weights, bias = self.A.T.astype(g_nd.dtype), self.b.astype(g_nd.dtype)
        np.matmul(g_nd, weights, out=out)
        out += bias
        return out

    def to_bytes(self) -> bytes:
        return pack("affine", {"A": self.A, "b": self.b})


@dataclass(frozen=True, eq=False)
class KernelMap:
    """g -> base(g) + weighted mean of the residuals measured at m centres, by their likeness to g. With the identity as
    base it is Semantic Drift Compensation (Yu et al., CVPR 2020) on each vector."""

    centres_md: NDArray[np.float32]
    residuals_md: NDArray[np.float32]
    base: AffineMap | None
    kernel: KernelName
    width: float
    floor: float

    def __post_init__(self) -> None:
        shapes = self.centres_md.shape, self.residuals_md.shape
        finite = np.isfinite(self.centres_md).all() and np.isfinite(self.residuals_md).all()
        if shapes[0] != shapes[1] or not len(self.centres_md) or not finite:
            raise ValueError(
                f"kernel map of centres and residuals {shapes}: expected one shape, a row, finite"
            )

    def apply(self, g_nd: Floats) -> Floats:
        _check_dim(g_nd, self.centres_md.shape[1])
        out = (self.base.apply(g_nd) if self.base else g_nd).copy()
        # Here, so that whoever only composes affine maps (driver, command line) does not load torch.
        import torch

        from stream_odml.learn.geometry import unit, weighted_mean, weights_of

        centres_md = unit(torch.from_numpy(self.centres_md)).numpy()
        fallback_d = torch.from_numpy(self.residuals_md).mean(0)
        room_nm = np.empty((min(_BLOCK, len(g_nd)), len(centres_md)), np.float32)
        for i in range(0, len(g_nd), _BLOCK):
            g = torch.from_numpy(np.ascontiguousarray(g_nd[i : i + _BLOCK], dtype=np.float32))
            # numpy's products are a little faster here than those of torch: 5.3 s against 5.7 for 100k x 512.
            cos_nm = np.matmul(unit(g).numpy(), centres_md.T, out=room_nm[: len(g)])
            w = weights_of(torch.from_numpy(cos_nm), self.kernel, self.width)
            num_nd = torch.from_numpy(np.matmul(w.numpy(), self.residuals_md))
            absolute_n = torch.linalg.vector_norm(w, 1, dim=1)
            out[i : i + _BLOCK] += weighted_mean(num_nd, w.sum(1), absolute_n, self.floor, fallback_d).numpy()
        return out

    def to_bytes(self) -> bytes:
        arrays: dict[str, Floats] = {"anchors": self.centres_md, "residuals": self.residuals_md}
        if self.base:
            arrays |= {"A": self.base.A, "b": self.base.b}
        return pack("kernel", dict(arrays), kernel=self.kernel, width=self.width, floor=self.floor)


@dataclass(frozen=True)
class ChainMap:
    """Maps applied in turn: what is left when not all of them are affine. Not stored; its links are."""

    links: tuple[DriftMap, ...]

    def apply(self, g_nd: Floats) -> Floats:
        for link in self.links:
            g_nd = link.apply(g_nd)
        return g_nd

    def to_bytes(self) -> bytes:
        raise ValueError("a chain of drift maps is not stored; store its links")


def compose(maps: Sequence[DriftMap]) -> DriftMap:
    """Return the map that applies `maps` from first to last; consecutive affine maps are multiplied in float64."""
    links: list[DriftMap] = []
    parts = [part for link in maps for part in (link.links if isinstance(link, ChainMap) else (link,))]
    for part in parts:
        last = links[-1] if links else None
        if isinstance(part, AffineMap) and isinstance(last, AffineMap):
            links[-1] = AffineMap(part.A @ last.A, part.A @ last.b + part.b)
        elif not isinstance(part, IdentityMap):
            links.append(part)
    if not links:
        return IdentityMap()
    return links[0] if len(links) == 1 else ChainMap(tuple(links))


def drift_map_from_bytes(data: bytes) -> DriftMap:
    """Read the bytes of `to_bytes`. Raises BadArtifact for damaged bytes or another kind of artifact."""
    kind, arrays, meta = unpack(data, _KINDS)
    if kind == "identity":
        return IdentityMap()
    base = AffineMap(arrays["A"], arrays["b"]) if "A" in arrays else None
    if kind == "affine":
        return cast(AffineMap, base)
    return KernelMap(arrays["anchors"], arrays["residuals"], base, **meta)


def _check_dim(g_nd: Floats, d: int) -> None:
    if g_nd.ndim != 2 or g_nd.shape[1] != d:
        raise ValueError(f"vectors of shape {g_nd.shape} for a drift map of dimension {d}; expected [n, {d}]")
