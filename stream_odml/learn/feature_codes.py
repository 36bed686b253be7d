"""Coding of trunk features as a gallery stores them: 8 bits and a scale for each row, or half precision.

Everything downstream (sums, heads, searches) reads decoded features, never the originals, so that whatever was summed
can be summed again from the store and subtracted.
"""

# n rows   D trunk feature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.packing import Floats
from stream_odml.zero import is_zero

FeatureFormat = Literal["int8", "float16"]
FORMATS: tuple[FeatureFormat, ...] = ("int8", "float16")
_DTYPES: dict[FeatureFormat, Any] = {"int8": np.int8, "float16": np.float16}
_LARGEST = {"int8": 127.0, "float16": 1.0}


@dataclass(frozen=True, eq=False)
class FeatureCodes:
    """n features of one trunk: h ≈ codes * scale, row by row. The direction of h is that of its codes."""

    codes_nD: NDArray[Any]
    """int8, or float16 in -1..1."""
    scale_n: NDArray[np.float32]
    """0 for a row of zeros."""

    def __post_init__(self) -> None:
        if self.codes_nD.ndim != 2 or self.codes_nD.dtype not in (np.int8, np.float16):
            raise ValueError(
                f"feature codes of {self.codes_nD.dtype} {self.codes_nD.shape}; "
                f"expected [n, D] of {' or '.join(FORMATS)}"
            )
        if self.scale_n.shape != self.codes_nD.shape[:1] or self.scale_n.dtype != np.float32:
            raise ValueError(
                f"scales of {self.scale_n.dtype} {self.scale_n.shape} for {len(self.codes_nD)} rows of codes; "
                "expected float32, one a row"
            )

    def __len__(self) -> int:
        return len(self.codes_nD)

    def __getitem__(self, rows: slice | NDArray[Any]) -> FeatureCodes:
        """Return some rows; a slice of a memory map stays one."""
        return FeatureCodes(self.codes_nD[rows], self.scale_n[rows])

    @staticmethod
    def joined(parts: Sequence[FeatureCodes]) -> FeatureCodes:
        """Return the features of all parts, of which there is one at least."""
        codes_nD = np.concatenate([part.codes_nD for part in parts])
        return FeatureCodes(codes_nD, np.concatenate([part.scale_n for part in parts]))

    @property
    def dim(self) -> int:
        """Return D."""
        return int(self.codes_nD.shape[1])

    @property
    def format(self) -> FeatureFormat:
        """Return the format of the stored codes."""
        return "int8" if self.codes_nD.dtype == np.int8 else "float16"

    def decode(self) -> NDArray[np.float32]:
        """Return h as stored, float32 [n, D]."""
        h_nD: NDArray[np.float32] = self.codes_nD.astype(np.float32)
        h_nD *= self.scale_n[:, None]
        return h_nD


def encode(h_nD: Floats, form: FeatureFormat = "int8") -> FeatureCodes:
    """Return features [n, D] as codes, each row by its own largest value. Raises ValueError for a value that is not
    finite, and for a shape other than [n, D].

    int8: |h - decoded| is at most max|h| / 254 of the row. Encoding what was decoded gives the same codes.
    """
    if form not in FORMATS:
        raise ValueError(f"feature format {form!r}, expected one of {', '.join(FORMATS)}")
    if h_nD.ndim != 2:
        raise ValueError(f"features of shape {h_nD.shape}, expected [n, D]")
    if not np.isfinite(h_nD).all():
        bad = int((~np.isfinite(h_nD).all(axis=1)).sum())
        raise ValueError(
            f"{bad} of {len(h_nD)} features have a value that is not finite; "
            "check the images and the trunk that made them"
        )
    # In float64: a row of float32's smallest or largest values has a scale that float32 arithmetic would lose.
    wide_nD = np.asarray(h_nD, np.float64)
    scale_n = (np.abs(wide_nD).max(axis=1, initial=0.0) / _LARGEST[form]).astype(np.float32)
    scale_n[is_zero(wide_nD)] = 0.0
    coded_nD = wide_nD / np.where(scale_n > 0, scale_n, np.inf).astype(np.float64)[:, None]
    if form == "int8":
        coded_nD = np.rint(coded_nD).clip(-127, 127)
    return FeatureCodes(coded_nD.astype(_DTYPES[form]), scale_n)
