"""Made-up features of classes, as a trunk would give them: class means that differ, noise that differs by direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.lift import Lift

Float32s = NDArray[np.float32]


def made(
    classes: int, each: int, dim: int, seed: int = 0, *, noise: float = 1.0, first: int = 0
) -> tuple[Float32s, list[str]]:
    """(h [classes * each, dim], non-negative as after a ReLU, and class names)."""
    rng = np.random.default_rng([seed, first])
    label_n = np.repeat(np.arange(classes), each)
    deviation_D = noise * np.where(np.arange(dim) < dim // 4, 2.0, 0.4)
    means_CD = 3.0 + rng.normal(size=(classes, dim))
    h_nD = np.maximum(means_CD[label_n] + rng.normal(size=(len(label_n), dim)) * deviation_D, 0)
    return h_nD.astype(np.float32), [f"class {first + c:06d}" for c in label_n]


def stored(classes: int, each: int, dim: int, seed: int = 0, **more: float) -> tuple[FeatureCodes, list[str]]:
    """The same, coded with 8 bits."""
    h_nD, names = made(classes, each, dim, seed, **more)  # type: ignore[arg-type]
    return encode(h_nD), names


def sums_of(features: FeatureCodes, names: list[str], width: int = 0) -> ClassSums:
    """Class sums of stored features, with a lift of `width`."""
    return ClassSums.of(Lift(features.dim, width, seed=5), features, names)
