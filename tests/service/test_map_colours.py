"""By what points of the map can be coloured, against loops that anyone can check by eye."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stream_odml.service import map_colours
from stream_odml.service.map_colours import MAX_VALUES, attribute_names, neighbour_differs, values_of
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


def test_a_neighbour_of_another_class_is_reported_as_a_loop_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_colours, "_BLOCK", 16)
    random = np.random.default_rng(0)
    vectors = unit(random.normal(size=(60, 6)).astype(np.float32))
    names = [f"c{n}" for n in random.integers(0, 3, len(vectors))]
    scores = vectors @ vectors.T
    expected = []
    for i in range(len(vectors)):
        others = [j for j in range(len(vectors)) if j != i]
        expected.append(names[max(others, key=lambda j: scores[i, j])] != names[i])
    assert neighbour_differs(vectors, names).tolist() == expected
    assert neighbour_differs(vectors[:1], names[:1]).tolist() == [False]
    assert neighbour_differs(vectors[:0], []).tolist() == []
