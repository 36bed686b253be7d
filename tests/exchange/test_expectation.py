"""Who asks for a forecast asks in the gallery that will be served: whole, but for the item that asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stream_odml.exchange import expectation
from stream_odml.exchange.expectation import OldItems, settings_by_pairs
from stream_odml.exchange.pairs import Pairs
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.head_choice import MAX_WHITENED, choose_head, sample_rows
from stream_odml.learn.lift import Lift
from tests.service.vector_stream import vector_config


def on_circle(*degrees: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def plain_head(learnt: list[int]) -> Any:
    """Compares features as they are, and notes of how many items it was solved."""

    def solve(sums: Any, settings: HeadSettings) -> Any:
        learnt.append(int(sums.n_items))
        return SimpleNamespace(
            known_dim=0, new_part=FeatureCodes.decode, embed=lambda h: h, split=lambda z: (None, z)
        )

    return solve


def test_only_the_own_item_of_a_query_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the first two cats is next to the other, and next to a dog once that is gone; the lone owl has nobody to
    find and does not count. The head has not learnt from the items of those that ask."""
    learnt: list[int] = []
    monkeypatch.setattr(expectation, "solve_head", plain_head(learnt))
    h = on_circle(0, 4, 90, 10, 170, 250)
    classes, ids = ("cat", "cat", "cat", "dog", "dog", "owl"), ("c0", "c1", "c2", "d0", "d1", "o0")
    items = OldItems(h, np.array(classes), np.array(ids))
    config = vector_config(tmp_path, evaluation={"held_out": 0.0})
    asked = Pairs(h, h, classes, ids).at(np.array([0, 1, 3, 5]))
    found = expectation._recall(h, items, asked.new_nF, asked, HeadSettings(dim=2), config)
    assert found == pytest.approx(2 / 3)
    assert learnt == [2]
    nearest = [(h[row] @ h.T - 2 * np.eye(6)[row]).argmax() for row in (0, 1, 3)]
    hits = [classes[at] == name for at, name in zip(nearest, ("cat", "cat", "dog"), strict=True)]
    assert found == np.mean(hits)


def test_many_pairs_choose_the_settings_and_of_a_large_root_not_whether_there_is_a_discriminant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors without classes apart have no use for a discriminant; a searcher of many items has, as it is shorter."""
    random = np.random.default_rng(0)
    classes = tuple(f"class {n % 30:02}" for n in range(240))
    h = random.standard_normal((240, 6)).astype(np.float32)
    pairs, config = Pairs(h, h, classes, ("",) * 240), vector_config(tmp_path)
    assert settings_by_pairs(pairs, config, 1000) is None, "too few"
    monkeypatch.setattr(expectation, "MIN_CHOOSING", 240)
    found = settings_by_pairs(pairs, config, 1000)
    keys = [str(row) for row in range(240)]
    codes = encode(h / np.linalg.norm(h, axis=1, keepdims=True))
    rows = sample_rows(keys, classes)
    lift = Lift(6, config.model.lift_of(6), config.seed)
    of_pairs = choose_head(
        ClassSums.of(lift, codes, classes),
        codes[rows],
        [classes[row] for row in rows],
        HeadSettings(dim=config.model.dim),
    )
    assert found == of_pairs
    large = settings_by_pairs(pairs, config, MAX_WHITENED + 1)
    assert large == replace(of_pairs, discriminant=True)
