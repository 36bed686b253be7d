"""φ of a stored feature: a direction, random features beside it, and the same bits wherever it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import GRID, Lift
from tests.learn.streams import made, stored


def test_it_is_the_direction_and_the_positive_part_of_its_projections() -> None:
    h, _ = made(5, 4, 16)
    lift = Lift(16, 40, seed=3)
    phi = lift.apply(h)
    for row, one in zip(phi, h, strict=True):
        unit = one / np.sqrt(sum(float(value) ** 2 for value in one))
        assert np.allclose(row[:16], unit, atol=1e-6)
        assert np.allclose(row[16:], np.maximum(unit @ lift.matrix / 32, 0), atol=1e-5)
    assert abs(lift.matrix.std() / 32 - 1) < 0.1


def test_stored_features_are_on_a_grid_near_it() -> None:
    features, _ = stored(5, 4, 16)
    whole = Lift(16, 40).integers(features)
    assert np.array_equal(whole, np.rint(whole))
    assert np.abs(whole / GRID - Lift(16, 40).apply(features.decode())).max() < 2 * np.sqrt(16) / GRID


def test_it_is_the_same_to_the_last_bit_in_any_batch_and_on_any_number_of_threads() -> None:
    features, _ = stored(40, 10, 256)
    lift, threads = Lift(256, 512), torch.get_num_threads()
    together = lift.integers(features)
    by_one = np.concatenate([lift.integers(features[i : i + 1]) for i in range(len(features))])
    by_seven = np.concatenate([lift.integers(features[i : i + 7]) for i in range(0, len(features), 7)])
    assert np.array_equal(together, by_one)
    assert np.array_equal(together, by_seven)
    exact = np.maximum(together[:, :256].astype(np.int64) @ lift.matrix.astype(np.int64), 0)
    assert np.array_equal(together[:, 256:], np.rint(exact / 32))
    assert torch.get_num_threads() == threads


def test_scale_does_not_matter_and_nothing_has_no_direction() -> None:
    h, _ = made(3, 2, 16)
    lift = Lift(16, 8)
    for scale in (1e-30, 1e-5, 1e30):
        assert np.allclose(lift.apply(h * np.float32(scale)), lift.apply(h), atol=1e-6)
        assert np.array_equal(lift.integers(encode(h * np.float32(2.0**90))), lift.integers(encode(h)))
    assert not lift.apply(np.zeros((2, 16), np.float32)).any()
    assert not lift.integers(encode(np.zeros((2, 16), np.float32))).any()


def test_a_narrower_lift_is_the_beginning_of_a_wider_one() -> None:
    features, _ = stored(3, 2, 16)
    wide, narrow = Lift(16, 64, seed=2), Lift(16, 24, seed=2)
    assert np.array_equal(wide.integers(features)[:, : 16 + 24], narrow.integers(features))
    assert not np.array_equal(Lift(16, 24, seed=1).matrix, narrow.matrix)
    assert Lift(16, 24, seed=2).out_dim == 40


def test_another_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="dimension 16 for a lift of 8"):
        Lift(8).integers(stored(2, 2, 16)[0])
    with pytest.raises(ValueError, match="lift of dimension 8"):
        Lift(8).apply(np.zeros((1, 16), np.float32))
    with pytest.raises(ValueError, match="width -1"):
        Lift(8, -1)
