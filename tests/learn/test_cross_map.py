"""The map between features of two models: planted relations are found, at classes that the fit has not seen."""

from __future__ import annotations

import numpy as np
import pytest

from stream_odml.learn.cross_map import CrossMap, fit_cross_map
from stream_odml.learn.packing import BadArtifact

D, F, CLASSES = 12, 20, 24


def pairs(relation: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    names = [f"c{i % CLASSES}" for i in range(600)]
    old = rng.normal(size=(CLASSES, D))[np.arange(600) % CLASSES] + 0.4 * rng.normal(size=(600, D))
    unit = old / np.linalg.norm(old, axis=1, keepdims=True)
    A = np.random.default_rng(99).normal(size=(F, D))
    if relation == "low rank":
        A[:, 3:] = 0
    new = unit @ A.T
    if relation == "bent":
        new = np.abs(new)
    noise = 1.0 if relation == "low rank" else 0.01
    return old.astype(np.float32), (new + noise * rng.normal(size=new.shape)).astype(np.float32), names


def cosines(cross: CrossMap, relation: str) -> float:
    old, new, _ = pairs(relation, seed=7)
    found = cross.apply(old)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(new, axis=1)
    return float(np.mean((found * new).sum(1) / lengths))


def test_an_affine_relation_needs_no_hidden_layer() -> None:
    cross = fit_cross_map(*pairs("affine"))
    assert cross.lift.width == 0
    assert cosines(cross, "affine") > 0.99
    assert cross.error < 0.01


def test_a_bent_one_gets_a_hidden_layer_which_pays() -> None:
    cross = fit_cross_map(*pairs("bent"))
    assert cross.lift.width > 0
    plain = fit_cross_map(*pairs("affine"))
    assert cosines(cross, "bent") > cosines(plain, "bent") + 0.05


def test_directions_of_noise_alone_are_not_kept() -> None:
    assert fit_cross_map(*pairs("low rank")).rank < F


def test_its_bytes_give_it_back_and_few_pairs_are_refused() -> None:
    old, new, names = pairs("affine")
    cross = fit_cross_map(old, new, names)
    again = CrossMap.from_bytes(cross.to_bytes())
    assert np.array_equal(again.apply(old), cross.apply(old))
    with pytest.raises(BadArtifact):
        CrossMap.from_bytes(cross.to_bytes()[:-1])
    with pytest.raises(ValueError, match="give more images"):
        fit_cross_map(old[:10], new[:10], names[:10])
