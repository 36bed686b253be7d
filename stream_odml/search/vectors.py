"""Vectors and the space that they live in, as one value: there is no vector without its version."""

from dataclasses import dataclass

import numpy as np

from stream_odml.store.tables import FloatArray
from stream_odml.zero import unit_rows

ROWS_AT_ONCE = 16384


@dataclass(frozen=True, eq=False)
class Vectors:
    """`array` float32 [n, d], raw or normalised, in the space of model `version`. Raises ValueError for another
    shape, a value that is not finite, or no version."""

    array: FloatArray
    version: str

    def __post_init__(self) -> None:
        if self.array.ndim != 2 or self.array.dtype != np.float32:
            raise ValueError(f"vectors are {self.array.dtype} {list(self.array.shape)}; give float32 [n, d]")
        if not self.version:
            raise ValueError(
                "vectors without a model version cannot be compared with anything; name the version"
            )
        if not np.isfinite(self.array).all():
            raise ValueError(
                "a vector holds NaN or infinity; embed the image again, or check what the client sent"
            )

    def __len__(self) -> int:
        return len(self.array)


def normalise_rows(array: FloatArray) -> None:
    """Divide each row of [n, d] by its L2 norm, in place and in blocks; a zero vector becomes zeros alone."""
    for start in range(0, len(array), ROWS_AT_ONCE):
        block = array[start : start + ROWS_AT_ONCE]
        with np.errstate(over="ignore"):
            norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        # Whose squares vanish or overflow, few if any: with care.
        far = np.flatnonzero(~((norms > 1e-15) & (norms < 1e15)))
        block[far] = unit_rows(block[far])
        norms[far] = 1
        block /= norms[:, None]
