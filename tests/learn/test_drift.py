"""Drift maps: the closed form against numpy's least squares, composition, bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import (
    AffineMap,
    DriftMap,
    IdentityMap,
    KernelMap,
    compose,
    drift_map_from_bytes,
)
from stream_odml.learn.moments import PairMoments
from stream_odml.learn.packing import BadArtifact, Floats
from stream_odml.learn.world import World

RNG = np.random.default_rng(0)
D = 5


def pairs(n: int = 60) -> tuple[Floats, Floats]:
    x = RNG.normal(size=(n, D)) * np.arange(1, D + 1) + 3
    return x, x @ RNG.normal(size=(D, D)) + RNG.normal(size=D) + 0.1 * RNG.normal(size=(n, D))


def moments_of(x: Floats, y: Floats) -> PairMoments:
    moments = PairMoments.empty(D)
    for i in range(0, len(x), 7):
        moments.add(torch.from_numpy(x[i : i + 7]), torch.from_numpy(y[i : i + 7]))
    return moments.summed(World())


def random_affine() -> AffineMap:
    return AffineMap(RNG.normal(size=(D, D)), RNG.normal(size=D))


@pytest.mark.parametrize(("anchors", "residuals"), [((0, D), (0, D)), ((3, D), (2, D)), ((3, D), (3, D + 1))])
def test_a_kernel_map_has_anchors_and_as_many_residuals(
    anchors: tuple[int, int], residuals: tuple[int, int]
) -> None:
    a, r = np.ones(anchors, np.float32), np.ones(residuals, np.float32)
    with pytest.raises(ValueError, match="expected one shape, a row, finite"):
        KernelMap(a, r, None, "cosine", 0.1, 0.05)


@pytest.mark.parametrize("backward", [False, True])
def test_without_ridge_the_fit_is_least_squares(backward: bool) -> None:
    x, y = pairs()
    fitted = moments_of(x, y).fit(0.0, backward=backward)
    source, target = (y, x) if backward else (x, y)
    solution = np.linalg.lstsq(np.c_[source, np.ones(len(x))], target, rcond=None)[0]
    # Sums of products square the condition of the rows, which these numbers do not bound.
    assert pytest.approx(solution[:-1].T, rel=1e-3, abs=1e-4) == fitted.A
    assert fitted.b == pytest.approx(solution[-1], rel=1e-3, abs=1e-3)


def test_the_ridge_pulls_towards_the_identity() -> None:
    x, y = pairs()
    ridge = 0.3
    fitted = moments_of(x, y).fit(ridge)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    r = np.sqrt(ridge * len(x) * centred_x.var(0).mean())  # the penalty as D more rows of least squares
    rows, targets = np.r_[centred_x, r * np.eye(D)], np.r_[centred_y, r * np.eye(D)]
    assert pytest.approx(np.linalg.lstsq(rows, targets, rcond=None)[0].T, rel=1e-6) == fitted.A
    assert pytest.approx(np.eye(D), abs=1e-6) == moments_of(x, y).fit(1e9).A


def test_unexplained_is_the_share_of_drift_that_remains() -> None:
    x, y = pairs()
    moments, identity = moments_of(x, y), AffineMap(np.eye(D), np.zeros(D))
    fitted = moments.fit(0.1)
    remaining = ((fitted.apply(x) - y) ** 2).sum() / ((x - y) ** 2).sum()
    assert moments.unexplained(fitted) == pytest.approx(remaining, rel=1e-6)
    assert moments.unexplained(identity) == pytest.approx(1.0)
    assert moments_of(x, x).unexplained(identity) == 0.0


def test_images_all_alike_or_zero_give_a_shift() -> None:
    x, y = np.full((9, D), 2.0), np.full((9, D), 5.0)
    assert moments_of(x, y).fit(0.0).apply(x) == pytest.approx(y)
    assert moments_of(0 * x, 0 * y).fit(0.03).apply(x) == pytest.approx(x)
    assert PairMoments.empty(D).fit(0.03).apply(x) == pytest.approx(x)


def kernel_map(base: AffineMap | None) -> KernelMap:
    anchors, residuals = RNG.normal(size=(2, 8, D)).astype(np.float32)
    return KernelMap(anchors, residuals, base, "gaussian", 0.7, 0.05)


def test_a_kernel_map_is_semantic_drift_compensation_on_each_vector() -> None:
    drift, g = kernel_map(None), RNG.normal(size=(3, D))
    for row, result in zip(g, drift.apply(g), strict=True):
        z, anchors = row / np.linalg.norm(row), drift.centres_md.astype(np.float64)
        weights = [np.exp(-(np.linalg.norm(z - a / np.linalg.norm(a)) ** 2) / (2 * 0.49)) for a in anchors]
        moved = sum(w * r for w, r in zip(weights, drift.residuals_md, strict=True)) / sum(weights)
        assert result == pytest.approx(row + moved, rel=1e-5, abs=1e-6)  # float32 sums of numbers near 1


def test_composition_applies_first_to_last_and_fuses_affine_runs() -> None:
    a, b, c, k = random_affine(), random_affine(), random_affine(), kernel_map(random_affine())
    g = RNG.normal(size=(4, D))
    fused = compose([a, IdentityMap(), b])
    assert isinstance(fused, AffineMap)
    assert fused.apply(g) == pytest.approx(b.apply(a.apply(g)))
    mixed = compose([fused, k, compose([c, k])])
    assert mixed.apply(g) == pytest.approx(k.apply(c.apply(k.apply(b.apply(a.apply(g))))))
    assert compose([]).apply(g) is g


def test_a_long_chain_of_affine_maps_erodes_nothing() -> None:
    turns = [np.linalg.qr(RNG.normal(size=(D, D)))[0] for _ in range(50)]
    maps = [AffineMap(q, RNG.normal(size=D)) for q in turns]
    back = [AffineMap(m.A.T, -m.A.T @ m.b) for m in reversed(maps)]
    g = RNG.normal(size=(4, D)).astype(np.float32)
    assert compose([*maps, *back]).apply(g) == pytest.approx(g, abs=1e-6)


@pytest.mark.parametrize(
    "drift", [IdentityMap(), random_affine(), kernel_map(None), kernel_map(random_affine())]
)
def test_bytes_keep_every_bit_and_dtypes_stay(drift: DriftMap) -> None:
    g = RNG.normal(size=(6, D)).astype(np.float32)
    again = drift_map_from_bytes(drift.to_bytes())
    assert type(again) is type(drift)
    assert np.array_equal(again.apply(g), drift.apply(g))
    assert again.apply(g).dtype == np.float32
    assert again.apply(g[:0]).shape == (0, D)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="dimension 5; expected"):
        random_affine().apply(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="expected finite"):
        AffineMap(np.full((2, 2), np.nan), np.zeros(2))
    with pytest.raises(BadArtifact, match="expected identity or affine or kernel"):
        drift_map_from_bytes(ClassBank.empty(2).to_bytes())
