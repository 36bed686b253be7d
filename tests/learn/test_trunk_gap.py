"""When a trunk is worth moving: the variance between classes against a naive analysis of variance, and the rule."""

from __future__ import annotations

import numpy as np
import pytest

from stream_odml.learn.feature_codes import encode
from stream_odml.learn.trunk_gap import between_share, is_worth_moving, trained_share, trunk_gap, trunk_need


def clustered(classes: int, each: int, apart: float, seed: int) -> tuple[np.ndarray, list[str]]:
    """Rows around class centres, `apart` times as far from one another as images of a class are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, 16)) * apart
    rows = np.repeat(centres, each, axis=0) + random.normal(size=(classes * each, 16))
    return rows.astype(np.float32) + 6, [f"s{seed}c{c}" for c in range(classes) for _ in range(each)]


def test_the_share_between_classes_is_that_of_an_analysis_of_variance() -> None:
    random = np.random.default_rng(0)
    counts = [2, 5, 3, 9]
    labels = np.repeat(np.arange(4), counts)
    x = random.normal(size=(len(labels), 3)) + 2 * random.normal(size=(4, 3))[labels]
    n, means = len(x), [x[labels == c].mean(0) for c in range(4)]
    within = sum(((x[i] - means[labels[i]]) ** 2).sum() for i in range(n)) / (n - 4)
    of_means = sum(counts[c] * ((means[c] - x.mean(0)) ** 2).sum() for c in range(4)) / 3
    each = (n - sum(c * c for c in counts) / n) / 3
    between = (of_means - within) / each
    assert between_share(x, labels) == pytest.approx(between / (between + within))


def test_classes_of_few_images_seem_no_further_apart_than_they_are() -> None:
    found = []
    for each in (2, 40):
        x, names = clustered(200, each, 0.0, 5)
        found.append(between_share(x.astype(np.float64), np.unique(names, return_inverse=True)[1]))
    assert found == pytest.approx([0, 0], abs=0.03)


@pytest.mark.parametrize(
    ("trained", "new", "worth"),
    [
        ((10, 3.0), (30, 1.0), True),
        ((10, 1.0), (30, 1.0), False),
        ((95, 3.0), (5, 1.0), False),
        ((10, 1.0), (30, 3.0), False),
    ],
    ids=["few classes seen, others worse", "others as good", "most classes seen", "others better"],
)
def test_a_trunk_is_moved_for_what_it_lacks(
    trained: tuple[int, float], new: tuple[int, float], worth: bool
) -> None:
    (x, mine), (y, others) = (clustered(n, 12, apart, i) for i, (n, apart) in enumerate((trained, new)))
    names = [*mine, *others]
    share, gap = (
        trained_share(set(names), set(mine)),
        trunk_gap(encode(np.concatenate([x, y])), names, set(mine)),
    )
    assert share == pytest.approx(trained[0] / (trained[0] + new[0]))
    assert gap is not None
    assert is_worth_moving({"trained": share, "gap": gap}) == worth


def test_where_nothing_can_be_compared_nothing_is_moved() -> None:
    x, names = clustered(3, 2, 1.0, 0)
    for trained in ([], names, names[:1]):
        assert trunk_gap(encode(x), names, set(trained)) is None
    assert trunk_gap(encode(x[:0]), [], set()) is None
    assert trained_share((), ()) == 1
    assert not is_worth_moving({"trained": 0.1})


@pytest.mark.parametrize(("new", "worth"), [(2, True), (1, False)], ids=["a tenth", "less than a tenth"])
def test_a_trunk_that_began_with_nothing_is_not_asked_what_it_lacks(new: int, worth: bool) -> None:
    x, mine = clustered(18, 2, 1.0, 0)
    y, others = clustered(new, 2, 9.0, 1)
    names, features = [*mine, *others], encode(np.concatenate([x, y]))
    known = set(names)
    need = trunk_need(known, set(mine), lambda: (features, names), pretrained=False)
    assert is_worth_moving(need) == worth
    assert not is_worth_moving(trunk_need(known, set(mine), lambda: (features, names), pretrained=True))
