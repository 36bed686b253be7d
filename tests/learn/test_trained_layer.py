"""The layer that a trunk was trained behind is a part of the head where it helps, and follows a trunk that moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings, solve_head
from stream_odml.learn.drift import AffineMap, ChainMap, IdentityMap
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.head_choice import choose_head, sample_rows
from stream_odml.learn.lift import Float64s, Lift
from stream_odml.learn.packing import pack, unpack
from stream_odml.learn.trained_layer import moved_layer, no_layer, with_layer

D, TELLING = 24, 6


def classes(count: int, each: int, seed: int) -> tuple[FeatureCodes, list[str]]:
    """Classes that differ along the first TELLING dimensions, images of each along all."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(count, D)) * np.where(np.arange(D) < TELLING, 1.0, 0.05)
    label = np.repeat(np.arange(count), each)
    h = (4 + means[label] + 0.8 * random.normal(size=(len(label), D))).astype(np.float32)
    return encode(h), [f"class {c:04d}" for c in label]


def telling() -> Float64s:
    """The layer that knows them."""
    return np.eye(D)[:TELLING]


def misleading() -> Float64s:
    """One that looks where only images of a class differ."""
    return np.eye(D)[TELLING:]


def solved(settings: HeadSettings, layer_lD: Float64s | None, width: int = 0) -> DiscriminantHead:
    codes, names = classes(12, 6, seed=1)
    return solve_head(ClassSums.of(Lift(D, width), codes, names), settings, layer_lD)


def test_both_have_the_variance_that_is_asked_for() -> None:
    random = np.random.default_rng(0)
    known_dE, layer_lD, root_EE = (random.normal(size=shape) for shape in ((5, 8), (4, 6), (8, 8)))
    total_EE = root_EE @ root_EE.T
    both_kE = with_layer(known_dE, layer_lD, 0.5, total_EE, 9)
    layer_lE = np.pad(layer_lD, ((0, 0), (0, 2)))
    parts = [part / np.trace(part @ total_EE @ part.T) ** 0.5 for part in (known_dE, layer_lE)]
    x_En = random.normal(size=(8, 20))
    expected = x_En.T @ (parts[0].T @ parts[0] + 0.5 * parts[1].T @ parts[1]) @ x_En
    assert np.allclose((both_kE @ x_En).T @ (both_kE @ x_En), expected), (
        "a rotation leaves products as they are"
    )
    fewer_kE = with_layer(known_dE, layer_lD, 0.5, total_EE, 3)
    assert fewer_kE.shape == (3, 8)
    assert np.allclose(fewer_kE, both_kE[:3]), "and the first are those in which items differ most"


@pytest.mark.parametrize("dim", [4, 16])
def test_a_known_part_is_no_longer_for_it(dim: int) -> None:
    settings = HeadSettings(dim=dim)
    without, beside = (solved(replace(settings, layer=layer), telling()) for layer in (0.0, 0.5))
    assert without.known_dim == beside.known_dim == dim
    assert np.array_equal(without.known_dE, solved(settings, None).known_dE)
    assert not np.allclose(without.known_dE, beside.known_dE)
    assert np.array_equal(without.new_DD, beside.new_DD)


@pytest.mark.parametrize("layer_lD", [None, no_layer(D), np.zeros((3, D))])
def test_a_layer_that_says_nothing_changes_nothing(layer_lD: Float64s | None) -> None:
    alone, beside = (solved(HeadSettings(dim=8, layer=layer), layer_lD) for layer in (0.0, 0.5))
    z_nd = classes(3, 2, seed=2)[0].decode()
    one_nn, other_nn = (z @ z.T for z in (head.known_part(encode(z_nd)) for head in (alone, beside)))
    assert np.allclose(one_nn, other_nn, atol=1e-5)


def test_of_one_class_there_is_no_known_part_to_have_it() -> None:
    codes, names = classes(1, 8, seed=1)
    head = solve_head(ClassSums.of(Lift(D), codes, names), HeadSettings(layer=0.5), telling())
    assert (head.known_dim, len(head.layer_lD)) == (0, TELLING)


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize(("layer_lD", "expected"), [(telling(), 0.5), (misleading(), 0.0), (None, 0.0)])
def test_it_is_taken_where_it_helps_alone(layer_lD: Float64s | None, expected: float, seed: int) -> None:
    codes, names = classes(150, 6, seed)
    rows = sample_rows([str(row) for row in range(len(names))], names)
    sums = ClassSums.of(Lift(D), codes, names)
    sample = codes[rows], [names[row] for row in rows]
    chosen = choose_head(sums, *sample, HeadSettings(dim=12), layer_lD=layer_lD)
    assert chosen.knows_all
    assert chosen.layer == expected


def test_once_it_is_taken_it_stays_until_it_is_seen_to_find_less() -> None:
    codes, names = classes(100, 6, seed=3)
    sums = ClassSums.of(Lift(D), codes, names)
    # A layer that neither helps nor misleads: what the discriminant says, again.
    same = solve_head(sums, HeadSettings(dim=12, weighing="equal")).known_dE
    for layer_lD, was, expected in ((same, 0.0, 0.0), (same, 0.5, 0.5), (misleading(), 0.5, 0.0)):
        before = HeadSettings(dim=12, layer=was)
        chosen = choose_head(sums, codes, names, HeadSettings(dim=12), earlier=before, layer_lD=layer_lD)
        assert (chosen.knows_all, chosen.layer) == (True, expected)


def test_of_few_classes_it_is_not_asked() -> None:
    codes, names = classes(16, 8, seed=3)
    sums = ClassSums.of(Lift(D), codes, names)
    chosen = choose_head(sums, codes, names, HeadSettings(dim=8), earlier=HeadSettings(), layer_lD=telling())
    assert (chosen.discriminant, chosen.knows_all, chosen.layer) == (True, False, 0.0)


def test_it_says_of_a_moved_trunk_what_it_said_before() -> None:
    random = np.random.default_rng(0)
    A, h_nD = random.normal(size=(D, D)), random.normal(size=(5, D))
    backward = AffineMap(A, random.normal(size=D))
    W_lD = moved_layer(telling(), backward)
    before_nl = backward.apply(h_nD) @ telling().T
    after_nl = h_nD @ W_lD.T
    assert np.allclose(after_nl - after_nl.mean(0), before_nl - before_nl.mean(0))
    assert np.array_equal(moved_layer(telling(), IdentityMap()), telling())
    assert moved_layer(telling(), ChainMap((backward,))).shape == (0, D), "what is not affine moves no layer"


def test_a_head_is_read_with_its_layer_and_one_of_an_earlier_release_without() -> None:
    head = solved(HeadSettings(dim=8, layer=0.5), telling(), width=5)
    data = head.to_bytes()
    again = DiscriminantHead.from_bytes(data)
    assert again.equals(head, 0.0)
    assert again.to_bytes() == data
    kind, arrays, meta = unpack(data, ("discriminant-head",))
    del arrays["layer"], meta["settings"]["layer"]
    earlier = DiscriminantHead.from_bytes(pack(kind, arrays, **meta))
    assert (earlier.layer_lD.shape, earlier.settings.layer) == ((0, D), 0.0)
    assert np.array_equal(earlier.known_dE, head.known_dE)


def test_a_layer_of_another_trunk_is_refused() -> None:
    with pytest.raises(ValueError, match="head of dimension 24 with a trained layer"):
        solved(HeadSettings(dim=8), np.eye(5))
    with pytest.raises(ValueError, match="not finite"):
        solved(HeadSettings(dim=8), np.full((2, D), np.nan))
