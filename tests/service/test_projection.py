"""The map: the best plane there is, the same whichever way the space is turned, and steady while classes come."""

from __future__ import annotations

import numpy as np
import pytest

from stream_odml.service.catalogue import project, sample_rows


def blobs(classes: int, each: int = 20, dim: int = 16) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(classes, dim)) * np.linspace(3, 0.3, dim)
    points = (centres[:, None] + 0.2 * rng.normal(size=(classes, each, dim))).reshape(-1, dim)
    return points.astype(np.float32), [f"class {i // each}" for i in range(classes * each)]


def test_it_keeps_as_much_spread_as_the_two_largest_singular_values() -> None:
    vectors, names = blobs(10)
    plane = project(vectors, names, sorted(set(names)))
    singular = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    spread = np.linalg.svd(plane - plane.mean(axis=0), compute_uv=False)
    assert spread[0] / spread[1] == pytest.approx(singular[0] / singular[1], rel=1e-3)
    assert np.abs(plane).max() == pytest.approx(1.0)


def test_a_turned_or_mirrored_space_has_the_same_map() -> None:
    vectors, names = blobs(10)
    oldest = list(dict.fromkeys(names))
    rng = np.random.default_rng(5)
    for _ in range(5):
        turn = np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32)
        turn[:, 0] *= rng.choice([-1, 1])
        np.testing.assert_allclose(
            project(vectors @ turn, names, oldest), project(vectors, names, oldest), atol=1e-4
        )


def test_new_classes_do_not_turn_the_map() -> None:
    vectors, names = blobs(40)
    oldest = list(dict.fromkeys(names))
    before = project(vectors[:720], names[:720], oldest[:36])
    after = project(vectors, names, oldest)[:720]
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95


def test_the_sample_is_fair_to_classes_and_keeps_its_items() -> None:
    codes = np.array([0] * 90 + [1] * 8 + [2] * 2)
    ids = [f"item {i}" for i in range(100)]
    rows = sample_rows(codes, ids, 18)
    assert np.bincount(codes[rows]).tolist() == [8, 8, 2]
    more = sample_rows(np.append(codes, [0] * 10), [*ids, *(f"late {i}" for i in range(10))], 18)
    assert len(set(rows) & set(more)) >= 16


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_anything_to_show(n: int) -> None:
    vectors, names = blobs(1)
    plane = project(vectors[:n], names[:n], ["class 0"])
    assert plane.shape == (n, 2)
    assert np.isfinite(plane).all()
    assert sample_rows(np.zeros(n, np.int64), names[:n], 5).tolist() == list(range(n))
