"""What a discriminant direction counts: ridge regression, a posterior mean and heads of earlier releases as oracles."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings, solve_head
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.head_choice import choose_head
from stream_odml.learn.lift import GRID, Lift
from stream_odml.learn.packing import BadArtifact, pack, unpack
from stream_odml.learn.weighing import Weighing, direction_weights
from tests.learn.streams import stored, sums_of

Float64s = NDArray[np.float64]
DIM = 12


def unequal(width: int) -> tuple[ClassSums, Float64s, NDArray[np.int64]]:
    """Sums, φ and labels of classes of 4 to 11 images."""
    features, names = stored(6, 12, DIM)
    kept = np.array([row for row in range(len(names)) if row % 12 < 4 + row // 12 + 2])
    codes, names = features[kept], [names[row] for row in kept]
    sums = sums_of(codes, names, width)
    return sums, sums.lift.integers(codes) / GRID, np.array([sums.names.index(name) for name in names])


def products(vectors: Float64s) -> Float64s:
    gram: Float64s = vectors @ vectors.T
    gram /= np.trace(gram)
    return gram


def ridge_of(sums: ClassSums, shrinkage: float) -> float:
    """The ridge that a shrinkage stands for."""
    within = float(sums.scatter()[0].trace())
    return (1 - shrinkage) * within / (shrinkage * sums.lift.out_dim)


@pytest.mark.parametrize("width", [0, 9])
@pytest.mark.parametrize("s", [0.3, 0.8, 0.95])
def test_ridge_has_the_products_of_class_scores(s: float, width: int) -> None:
    sums, phi_nE, label_n = unequal(width)
    # One class against all others, each as long as it has images: what is regressed onto has length 1.
    target_nC = (label_n[:, None] == np.arange(6)).astype(float) / np.sqrt(sums.counts_C)
    centred_nE = phi_nE - phi_nE.mean(0)
    ridge_EE = ridge_of(sums, s) * np.eye(phi_nE.shape[1])
    weights_EC = np.linalg.solve(centred_nE.T @ centred_nE + ridge_EE, centred_nE.T @ target_nC)
    head = solve_head(sums, HeadSettings(dim=5, width=width, shrinkage=s))
    assert np.allclose(products(centred_nE @ head.known_dE.T), products(centred_nE @ weights_EC), atol=1e-10)


@pytest.mark.parametrize("s", [0.3, 0.95])
def test_posterior_is_the_mean_of_a_class_given_an_image(s: float) -> None:
    sums, phi_nE, _ = unequal(0)
    within_EE, between_EE = sums.scatter()
    within_EE += ridge_of(sums, s) * np.eye(DIM)
    centred_nE = phi_nE - phi_nE.mean(0)
    mean_nE = centred_nE @ np.linalg.solve(within_EE + between_EE, between_EE)
    root_EE = np.linalg.cholesky(np.linalg.inv(within_EE))
    head = solve_head(sums, HeadSettings(dim=5, shrinkage=s, weighing="posterior"))
    assert np.allclose(products(centred_nE @ head.known_dE.T), products(mean_nE @ root_EE), atol=1e-10)


@pytest.mark.parametrize("weighing", ["ridge", "posterior", "equal"])
def test_the_direction_that_counts_most_has_the_weight(weighing: Weighing) -> None:
    sums = unequal(0)[0]
    settings = HeadSettings(dim=9, weight=3.0, weighing=weighing)
    head = solve_head(sums, settings)
    s, within_EE = settings.shrinkage, sums.scatter()[0]
    shrunk_EE = (1 - s) * np.eye(DIM) + s * DIM / np.trace(within_EE) * within_EE
    lengths = np.sqrt(np.diag(head.known_dE @ shrunk_EE @ head.known_dE.T))
    assert lengths[:5].max() == pytest.approx(3.0)
    assert np.allclose(lengths[5:], 1.0), "and the rest has 1"
    if weighing == "equal":
        assert np.allclose(lengths[:5], 3.0)
    else:
        assert lengths[:5].min() < 2.9


@pytest.mark.parametrize(("kind", "expected"), [("ridge", [1.0, 0.5]), ("posterior", [1.0, 0.25])])
def test_where_the_ridge_is_all_it_is_the_scatter_that_counts(kind: Weighing, expected: list[float]) -> None:
    assert np.allclose(direction_weights(kind, np.array([4.0, 1.0]), 0.0), expected)
    alone, beside = (
        solve_head(unequal(0)[0], HeadSettings(shrinkage=s, weighing=kind)).known_dE for s in (0.0, 1e-9)
    )
    assert np.allclose(alone, beside, atol=1e-6)


@pytest.mark.parametrize("kind", ["ridge", "posterior", "equal"])
def test_of_no_direction_there_is_no_weight(kind: Weighing) -> None:
    assert direction_weights(kind, np.zeros(0), 1.0).shape == (0,)


def test_a_head_of_an_earlier_release_is_solved_again_as_it_was() -> None:
    sums = unequal(0)[0]
    equal = solve_head(sums, HeadSettings(dim=8, weighing="equal"))
    kind, arrays, meta = unpack(equal.to_bytes(), ("discriminant-head",))
    del meta["settings"]["weighing"]
    earlier = DiscriminantHead.from_bytes(pack(kind, arrays, **meta))
    with pytest.raises(BadArtifact, match="of a newer release"):
        DiscriminantHead.from_bytes(pack(kind, arrays, **{**meta, "settings": {"unheard_of": 1}}))
    assert earlier.again(sums).equals(earlier, 0.0)
    now = solve_head(sums, HeadSettings(dim=8))
    assert not now.equals(earlier)
    assert DiscriminantHead.from_bytes(now.to_bytes()).settings.weighing == "ridge"


def noisy(count: int, seed: int) -> tuple[FeatureCodes, list[str]]:
    """Classes that differ in 8 of 40 dimensions, far more so than images of one; in the others, less."""
    random = np.random.default_rng(seed)
    deviation_D = np.where(np.arange(40) < 8, 1.0, 0.2)
    label = np.repeat(np.arange(count), 8)
    h = (
        4
        + (random.normal(size=(count, 40)) * deviation_D)[label]
        + 0.5 * random.normal(size=(len(label), 40))
    )
    return encode(h.astype(np.float32)), [f"class {c:04d}" for c in label]


def chosen(codes: FeatureCodes, names: list[str]) -> Weighing:
    return choose_head(ClassSums.of(Lift(codes.dim), codes, names), codes, names).weighing


@pytest.mark.parametrize("twice", [1, 4, 12])
def test_of_about_one_image_a_class_directions_count_alike(twice: int) -> None:
    """What a few pairs say of how images of a class differ would else outweigh all that tells classes apart."""
    codes, names = noisy(12, 0)
    rows = np.array([8 * c + i for c in range(12) for i in range(2 if c < twice else 1)])
    sums = ClassSums.of(Lift(codes.dim), codes[rows], [names[row] for row in rows])
    by_ridge, alike = (solve_head(sums, HeadSettings(weighing=kind)) for kind in ("ridge", "equal"))
    assert np.array_equal(by_ridge.known_dE, alike.known_dE)
    more = ClassSums.of(Lift(codes.dim), codes, names)
    by_ridge, alike = (solve_head(more, HeadSettings(weighing=kind)) for kind in ("ridge", "equal"))
    assert not np.allclose(by_ridge.known_dE, alike.known_dE)


@pytest.mark.parametrize("seed", range(4))
def test_of_more_classes_than_dimensions_the_one_is_taken_that_finds_more(seed: int) -> None:
    assert chosen(*noisy(24, seed)) == "ridge", "fewer classes"
    assert chosen(*noisy(200, seed)) == "posterior"
    assert chosen(*stored(90, 6, 40, seed, noise=0.1)) == "equal", "either finds all"
