"""The map between features of two models: planted relations are found, at classes that the fit has not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_odml.learn.cross_map import CrossMap, choose_cross_map, fit_cross_map
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


def test_entries_that_both_models_have_are_kept_at_classes_without_a_pair() -> None:
    """Few pairs for so many entries: a map from nothing cannot find a relation that one factor an entry says."""
    rng = np.random.default_rng(3)
    old = rng.normal(size=(160, 96)).astype(np.float32)
    new = (old * np.linspace(0.5, 2, 96) + 0.3 * rng.normal(size=old.shape)).astype(np.float32)
    names = [f"c{i % 20}" for i in range(120)]
    choice = choose_cross_map(old[:120], new[:120], names)
    assert choice.keeps_entries
    cross, plain = (
        fit_cross_map(old[:120], new[:120], names, choice=one)
        for one in (choice, replace(choice, keeps_entries=False))
    )

    def closeness(one: CrossMap) -> float:
        found = one.apply(old[120:])
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found, new[120:], strict=True)]))

    assert closeness(cross) > closeness(plain) + 0.1
    again = CrossMap.from_bytes(cross.to_bytes())
    assert np.array_equal(again.apply(old), cross.apply(old))


def test_items_are_drawn_to_the_mean_of_their_class_and_unknown_classes_stay() -> None:
    old, new, names = pairs("affine")
    cross = fit_cross_map(old, new, names)
    mean = cross.apply(old, names)[np.array(names) == "c1"].mean(axis=0)
    drawn = CrossMap.from_bytes(cross.drawn_to({"c1": mean}, 0.25).to_bytes())
    before, after = cross.apply(old[:60], names[:60]), drawn.apply(old[:60], names[:60])
    one = np.array(names[:60]) == "c1"
    assert after[one] == pytest.approx(mean + 0.25 * (before[one] - mean), abs=1e-5)
    assert drawn.apply(old[:60], ["other"] * 60) == pytest.approx(cross.apply(old[:60], ["other"] * 60))
