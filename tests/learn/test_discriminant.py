"""The discriminant head: scikit-learn and plain formulas as oracles, and every degenerate set of items."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_odml.learn import discriminant, eigen
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings, solve_head
from stream_odml.learn.evaluation import Retrieval, recall_at_k
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.lift import GRID, Lift
from stream_odml.learn.packing import BadArtifact
from tests.learn.streams import made, stored, sums_of

Float64s = NDArray[np.float64]


def discriminant_analysis() -> Any:
    """scikit-learn takes seconds to load: one process of a run does."""
    return importlib.import_module("sklearn.discriminant_analysis")


def phi_of(sums: ClassSums, features: FeatureCodes) -> Float64s:
    """φ as it was summed."""
    return sums.lift.integers(features) / GRID


def heads_differ(a: DiscriminantHead, b: DiscriminantHead) -> float:
    """Largest difference of any entry, beside the largest entry."""
    assert a.names == b.names
    pairs = ((a.mean_E, b.mean_E), (a.known_dE, b.known_dE), (a.new_DD, b.new_DD))
    return max(float(np.abs(x - y).max(initial=0.0) / np.abs(x).max(initial=1e-30)) for x, y in pairs)


@pytest.mark.parametrize("width", [0, 10])
@pytest.mark.parametrize(("classes", "each"), [(5, 9), (16, 4)])  # few classes beside E, and many
def test_it_ranks_as_linear_discriminant_analysis_of_scikit_learn(
    classes: int, each: int, width: int
) -> None:
    features, names = stored(classes, each, 12)
    sums = sums_of(features, names)
    phi, C = phi_of(sums, features), classes
    oracle = (
        discriminant_analysis()
        .LinearDiscriminantAnalysis(solver="eigen", shrinkage=1e-9, store_covariance=True)
        .fit(phi, names)
    )
    head = solve_head(sums, HeadSettings(dim=C - 1, shrinkage=1 - 1e-9, weight=1.0, weighing="equal"))
    theirs = oracle.transform(phi)[:, : C - 1]
    theirs = theirs - theirs.mean(0)
    ours = (phi - head.mean_E) @ head.known_dE.T
    assert ours.shape == theirs.shape
    gram, expected = ours @ ours.T, theirs @ theirs.T
    assert np.allclose(gram / np.trace(gram), expected / np.trace(expected), atol=1e-6)


@pytest.mark.parametrize("width", [0, 20])
@pytest.mark.parametrize("s", [0.3, 0.8, 0.95])
def test_shrinkage_is_that_of_scikit_learn(s: float, width: int) -> None:
    features, names = stored(6, 7, 15)
    sums = sums_of(features, names, width)
    phi, E = phi_of(sums, features), 15 + width
    oracle = (
        discriminant_analysis()
        .LinearDiscriminantAnalysis(solver="eigen", shrinkage=1 - s, store_covariance=True)
        .fit(phi, names)
    )
    head = solve_head(
        sums, HeadSettings(dim=5, width=width, shrinkage=s, new_shrinkage=s, weight=1.0, weighing="equal")
    )
    # Both parts are roots of the inverse covariance: one everywhere, one where class means differ.
    scale = np.trace(oracle.covariance_) / E
    if not width:
        assert np.allclose(
            head.new_DD.T @ head.new_DD / scale, np.linalg.inv(oracle.covariance_), rtol=1e-6, atol=1e-6
        )
    means = sums.class_means() - head.mean_E
    scores = (means @ head.known_dE.T) @ (head.known_dE @ (phi - head.mean_E).T) / scale
    expected = oracle.coef_ @ (phi - head.mean_E).T
    assert np.allclose(scores - scores.mean(0), expected - expected.mean(0), rtol=1e-5, atol=1e-5)


def test_it_is_the_formula_by_plain_numpy() -> None:
    features, names = stored(6, 5, 10)
    sums, s, w = sums_of(features, names), 0.7, 2.0
    phi = phi_of(sums, features)
    labels = np.array([sums.names.index(name) for name in names])
    means = np.stack([phi[labels == c].mean(0) for c in range(6)])
    S = sum(
        (np.outer(x - means[c], x - means[c]) for x, c in zip(phi, labels, strict=True)), np.zeros((10, 10))
    )
    variance, U = np.linalg.eigh((1 - s) * np.eye(10) + s * 10 * S / np.trace(S))
    W = U @ np.diag(variance**-0.5) @ U.T
    _, _, Vt = np.linalg.svd(np.sqrt(5) * (means - phi.mean(0)) @ W)
    head = solve_head(sums, HeadSettings(dim=5, shrinkage=s, weight=w, weighing="equal"))
    z = (phi - phi.mean(0)) @ W @ Vt[:5].T * w
    ours = (phi - head.mean_E) @ head.known_dE.T
    assert np.allclose(ours @ ours.T, z @ z.T)
    # With room beyond C - 1: the rest is orthogonal to it once whitened, strongest first, of weight 1.
    full = solve_head(sums, HeadSettings(dim=10, shrinkage=s, weight=w, weighing="equal"))
    assert np.allclose(full.known_dE[:5], head.known_dE)
    unweighted = full.known_dE / np.array([w] * 5 + [1] * 5)[:, None]
    mixed = (1 - s) * np.eye(10) + s * 10 * S / np.trace(S)
    assert np.allclose(unweighted @ mixed @ unweighted.T, np.eye(10), atol=1e-8)
    rest = np.square((phi - phi.mean(0)) @ full.known_dE[5:].T).sum(0)
    assert (np.diff(rest) <= 1e-9).all()


def test_few_and_many_classes_take_different_ways_to_the_same_head() -> None:
    features, names = stored(13, 3, 24, seed=2)
    sums = sums_of(features, names)  # 26 >= 24: by the scatter between classes
    lifted = sums_of(features, names, width=3)  # 26 < 27: by the means themselves
    by_scatter = solve_head(sums, HeadSettings(dim=8))
    same = solve_head(lifted.narrowed(0), HeadSettings(dim=8))
    assert heads_differ(by_scatter, same) == 0
    L = discriminant._shrunk_root(sums.scatter()[0], 0.8, 0.0)
    variance_a, V_a = discriminant._leading_of_means(sums, L, 8)
    variance_b, V_b = eigen.leading(discriminant._whitened(sums.scatter()[1], L), 8)
    assert np.allclose(variance_a, variance_b)
    assert np.allclose(V_a, V_b, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_orders_ranks_and_erasure_leave_the_head_as_it_would_be(seed: int) -> None:
    features, names = stored(9, 8, 20, seed)
    random, settings = np.random.default_rng(seed), HeadSettings(dim=12, width=6)
    whole = sums_of(features, names, width=6)
    order = random.permutation(len(names))
    parts = [sums_of(features[r], [names[i] for i in r], width=6) for r in np.array_split(order, 5)]
    assert (
        heads_differ(
            solve_head(whole, settings), solve_head(ClassSums.empty(whole.lift).plus(*parts), settings)
        )
        <= 1e-9
    )
    gone = order[:20]
    never = sums_of(features[order[20:]], [names[i] for i in order[20:]], width=6)
    after = whole.minus(sums_of(features[gone], [names[i] for i in gone], width=6))
    assert heads_differ(solve_head(after, settings), solve_head(never, settings)) <= 1e-9


def test_known_classes_are_found_by_the_discriminant_and_others_by_whitening() -> None:
    h, names = made(30, 20, 64, noise=2.5)
    unseen, other = made(15, 20, 64, noise=2.5, first=30)
    train = np.arange(len(h)) % 2 == 0
    sums = sums_of(encode(h[train]), [name for name, t in zip(names, train, strict=True) if t])
    head = solve_head(sums, HeadSettings(dim=29))
    labels = np.unique(names, return_inverse=True)[1][~train]
    others = np.unique(other, return_inverse=True)[1]

    def found(z: NDArray[np.float32], label: NDArray[np.int64]) -> float:
        return recall_at_k(Retrieval.leave_one_out(z, label))[1]

    known, new = head.known_part(encode(h[~train])), head.new_part(encode(unseen))
    assert (
        found(known, labels)
        > max(found(h[~train], labels), found(head.new_part(encode(h[~train])), labels)) + 0.05
    )
    assert (
        found(new, others) > max(found(unseen, others), found(head.known_part(encode(unseen)), others)) + 0.05
    )
    # A query has both parts, each as the gallery has it.
    queries = head.embed(h[~train][:7])
    a, b = head.split(queries)
    assert queries.shape == (7, head.dim)
    assert np.allclose(a, head.known_part(encode(h[~train][:7])), atol=0.02)
    assert np.allclose(b, head.new_part(encode(h[~train][:7])), atol=0.02)
    assert np.allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    assert head.knows("class 000003")
    assert not head.knows("class 000033")
    all_by_one = solve_head(sums, HeadSettings(dim=29, knows_all=True))
    assert not all_by_one.knows("class 000033")
    for one, part, bonus in ((head, head.new_part, 0.38), (all_by_one, all_by_one.known_part, 0.0)):
        of_new = one.vectors_of_new(encode(unseen))
        assert np.array_equal(of_new, part(encode(unseen)))
        assert np.allclose(of_new, one.embed(encode(unseen).decode())[:, one.slice_of_new], atol=1e-6)
        assert one.new_bonus == bonus
    scaled = HeadSettings(knows_all=True, new_scale=0.5, new_bonus=0.3, bonus_among_all=0.02)
    one = solve_head(sums, scaled)
    assert (one.new_scale, one.new_bonus) == (1.0, 0.02)


def test_where_there_is_no_known_part_it_compares_nothing() -> None:
    features, names = stored(4, 5, 8)
    head = solve_head(sums_of(features, names), HeadSettings(discriminant=False, knows_all=True))
    assert not head.knows(names[0])


def test_of_no_class_everything_is_compared_by_plain_cosine() -> None:
    h, _ = made(3, 4, 8)
    head = solve_head(ClassSums.empty(Lift(8, 4)), HeadSettings(width=4))
    assert (head.known_dim, head.dim, head.names, head.knows("x")) == (0, 8, (), False)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    assert np.allclose(head.embed(h), unit, atol=1e-6)
    assert np.allclose(head.new_part(encode(h)), unit, atol=0.02)
    assert head.known_part(encode(h)).shape == (12, 0)


def usable(head: DiscriminantHead, features: FeatureCodes) -> None:
    """Every vector is finite, and of length 1 or 0."""
    for part in (head.known_part(features), head.new_part(features), head.embed(features.decode())):
        assert np.isfinite(part).all()
    lengths = np.linalg.norm(head.new_part(features), axis=1)
    assert (np.isclose(lengths, 1, atol=1e-4) | (lengths == 0)).all()


def test_of_one_class_there_is_whitening_alone() -> None:
    features, names = stored(1, 9, 8)
    head = solve_head(sums_of(features, names))
    assert (head.known_dim, head.knows(names[0])) == (0, False)
    within = sums_of(features, names).scatter()[0]
    mixed = 0.2 * np.eye(8) + 0.8 * 8 * within / np.trace(within)
    assert np.allclose(head.new_DD @ mixed @ head.new_DD.T, np.eye(8))
    usable(head, features)


def test_of_one_image_a_class_directions_between_classes_are_taken_as_they_are() -> None:
    features, names = stored(6, 1, 10)
    sums = sums_of(features, names)
    head = solve_head(sums, HeadSettings(weight=1.0))
    assert head.known_dim == 5
    assert np.array_equal(head.new_DD, np.eye(10))
    phi = phi_of(sums, features) - head.mean_E
    z = phi @ head.known_dE.T
    assert np.allclose(z @ z.T, phi @ phi.T)
    usable(head, features)


def test_of_identical_images_nothing_breaks() -> None:
    one = np.random.default_rng(0).random((1, 10), np.float32)
    alike = encode(np.repeat(one, 12, axis=0))
    of_two = solve_head(sums_of(alike, ["a"] * 6 + ["b"] * 6))
    assert of_two.known_dim == 0  # no two classes differ
    usable(of_two, alike)
    pairs = encode(np.repeat(np.random.default_rng(1).random((4, 10), np.float32), 3, axis=0))
    of_four = solve_head(sums_of(pairs, [f"{i // 3}" for i in range(12)]))
    assert of_four.known_dim == 3  # nothing differs within classes
    usable(of_four, pairs)
    blank = encode(np.zeros((6, 10), np.float32))
    usable(solve_head(sums_of(blank, ["a"] * 3 + ["b"] * 3)), blank)


@pytest.mark.parametrize(("classes", "each", "dim"), [(2, 2, 64), (3, 5, 40), (40, 2, 16), (2, 50, 8)])
@pytest.mark.parametrize("width", [0, 30])
def test_few_images_beside_dimensions_and_the_reverse(classes: int, each: int, dim: int, width: int) -> None:
    features, names = stored(classes, each, dim)
    head = solve_head(sums_of(features, names, width), HeadSettings(width=width))
    assert head.known_dim <= dim + width
    assert head.known_dim >= min(classes - 1, dim)
    usable(head, features)
    labels = np.unique(names, return_inverse=True)[1].astype(np.int64)
    assert recall_at_k(Retrieval.leave_one_out(head.known_part(features), labels))[1] > 0.8


def test_constant_and_dependent_dimensions() -> None:
    h, names = made(6, 6, 12)
    h[:, 3], h[:, 4], h[:, 5] = 7.0, h[:, 6], 0.0
    for s in (0.0, 0.8, 0.999999):
        head = solve_head(sums_of(encode(h), names), HeadSettings(shrinkage=s, new_shrinkage=s))
        usable(head, encode(h))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    h, names = made(6, 6, 12)
    plain, scaled = (solve_head(sums_of(encode(x), names)) for x in (h, h * np.float32(scale)))
    assert heads_differ(plain, scaled) < 1e-2  # as far as 8 bits round another way
    assert np.allclose(scaled.embed(h * np.float32(scale)), plain.embed(h), atol=0.05)


def test_a_class_that_comes_again_counts_once_and_with_all_its_images() -> None:
    features, names = stored(5, 8, 12)
    tasks = [sums_of(features[i : i + 20], names[i : i + 20]) for i in (0, 20)]
    again = [sums_of(features[i::2], names[i::2]) for i in (0, 1)]
    heads = [solve_head(ClassSums.empty(Lift(12, 0, seed=5)).plus(*parts)) for parts in (tasks, again)]
    assert heads_differ(*heads) == 0


def test_a_hundred_thousand_classes() -> None:
    C, D = 100_000, 24
    codes = np.random.default_rng(0).integers(0, 128, (2 * C, D)).astype(np.int8)
    names = [f"{c:06d}" for c in range(C)] * 2
    features = FeatureCodes(codes, np.ones(2 * C, np.float32))
    head = solve_head(sums_of(features, names), HeadSettings(dim=16))
    assert (head.known_dim, len(head.names)) == (16, C)
    usable(head, features[:100])


def test_bytes_hold_the_head_and_damage_is_reported() -> None:
    features, names = stored(5, 8, 12)
    head = solve_head(sums_of(features, names, width=6), HeadSettings(dim=8, width=6, new_bonus=0.3))
    data = head.to_bytes()
    again = DiscriminantHead.from_bytes(data)
    assert heads_differ(head, again) == 0
    assert (again.settings, again.lift, again.to_bytes()) == (head.settings, head.lift, data)
    with pytest.raises(BadArtifact):
        DiscriminantHead.from_bytes(data[:100])
    with pytest.raises(BadArtifact, match="class-sums"):
        DiscriminantHead.from_bytes(sums_of(features, names).to_bytes())


def test_settings_and_heads_that_cannot_be_are_refused() -> None:
    for changed in ({"dim": 0}, {"width": -1}, {"shrinkage": 1.0}, {"new_shrinkage": -0.1}, {"weight": 0.0}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            HeadSettings(**changed)
    with pytest.raises(ValueError, match="a lift of 9 from sums of 0"):
        solve_head(sums_of(*stored(2, 2, 4)), HeadSettings(width=9))
    with pytest.raises(ValueError, match="not finite"):
        DiscriminantHead(
            HeadSettings(), Lift(2), (), np.full(2, np.nan), np.zeros((0, 2)), np.eye(2), np.zeros((0, 2))
        )


def test_a_vector_that_a_client_keeps_is_read_by_a_newer_head() -> None:
    h, names = made(9, 12, 20)
    older = solve_head(sums_of(encode(h[:48]), names[:48]))
    newer = solve_head(sums_of(encode(h), names))
    kept = older.embed(h)
    direction = h / np.linalg.norm(h, axis=1, keepdims=True)
    assert np.abs(older.direction(kept) - direction).max() < 1e-4
    assert np.abs(newer.embed(older.direction(kept)) - newer.embed(h)).max() < 1e-3
    first = solve_head(ClassSums.empty(Lift(20)))
    assert np.abs(newer.embed(first.direction(first.embed(h))) - newer.embed(h)).max() < 1e-3
    assert np.isfinite(older.direction(np.zeros((2, older.dim), np.float32))).all()
    with pytest.raises(ValueError, match="the head that made them"):
        newer.direction(kept[:, :-1])
