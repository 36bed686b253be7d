"""What the map shows of its points, against loops that anyone can check by eye."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stream_odml.service.catalogue import (
    MAX_VALUES,
    attribute_names,
    nearest,
    neighbour_differs,
    values_of,
)
from tests.service.fake_backend import unit


def test_an_attribute_is_offered_where_it_tells_groups_apart() -> None:
    items = [{"camera": "left", "path": f"a/{i}.jpg", "site": "one"} for i in range(MAX_VALUES + 5)]
    texts = [json.dumps(item) for item in items] + [json.dumps({"camera": "right"}), "{}"]
    assert attribute_names(texts) == ["camera"]
    assert attribute_names([]) == []


def test_values_come_by_how_many_items_have_them() -> None:
    texts = ['{"side": "left"}', '{"side": "right"}', "{}", '{"side": "right"}']
    assert values_of(texts, "side") == (["right", "left"], [1, 0, -1, 0])
    assert values_of(texts, "other") == ([], [-1] * 4)


def test_neighbours_are_those_that_a_loop_finds() -> None:
    random = np.random.default_rng(0)
    vectors = unit(random.normal(size=(60, 6)).astype(np.float32))
    vectors[7] = vectors[3]  # its equal may come before an item itself
    names = [f"c{n}" for n in random.integers(0, 3, len(vectors))]
    scores = vectors @ vectors.T
    near = nearest(vectors, 4)
    for i in range(len(vectors)):
        others = sorted((j for j in range(len(vectors)) if j != i), key=lambda j: -scores[i, j])[:4]
        assert scores[i, near[i]].tolist() == pytest.approx(scores[i, others].tolist(), abs=1e-6)
        assert i not in near[i]
    expected = [names[near[i][0]] != names[i] for i in range(len(vectors))]
    assert neighbour_differs(near[:, 0], names).tolist() == expected


def test_an_item_that_is_like_no_other_has_no_neighbour() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    assert nearest(vectors, 2).tolist() == [[1, -1], [0, -1], [-1, -1]]
    assert neighbour_differs(nearest(vectors, 2)[:, 0], ["a", "a", "a"]).tolist() == [False, False, True]
    assert nearest(vectors[:1], 2).tolist() == [[-1, -1]]
    assert neighbour_differs(np.array([-1]), ["a"]).tolist() == [False]
    assert nearest(vectors[:0], 2).shape == (0, 2)
    assert neighbour_differs(np.zeros(0, np.int64), []).tolist() == []
