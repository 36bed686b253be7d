"""The estimate of what a stage costs old classes: nothing for a turn, much for a map that misses."""

from __future__ import annotations

import numpy as np
import pytest

from stream_odml.learn.drift import AffineMap, IdentityMap
from stream_odml.learn.evaluation import estimated_recall

D = 16
RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(30), 4)
STORED = (RNG.normal(size=(30, D))[LABELS] + 0.3 * RNG.normal(size=(120, D))).astype(np.float32)
TURN = AffineMap(np.linalg.qr(RNG.normal(size=(D, D)))[0], RNG.normal(size=D) * 0)


def test_a_turn_that_the_map_knows_costs_nothing() -> None:
    recall = estimated_recall(STORED, LABELS, TURN, 0.0, seed=0)
    assert recall is not None
    before, after = recall
    assert before > 0.9
    assert after == pytest.approx(before)


def test_the_more_the_map_misses_the_more_it_costs() -> None:
    size = float((STORED**2).sum(1).mean())
    after = [estimated_recall(STORED, LABELS, TURN, share * size, seed=0) for share in (0.0, 0.5, 2.0, 50.0)]
    recalls = [found[1] for found in after if found is not None]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[0] - recalls[2] > 0.1
    assert recalls[3] < 0.2


def test_a_collapse_is_seen() -> None:
    found = estimated_recall(STORED, LABELS, AffineMap(np.zeros((D, D)), np.ones(D)), 0.0, seed=0)
    assert found is not None
    assert found[1] < 0.1


def test_classes_of_one_vector_say_nothing() -> None:
    assert estimated_recall(STORED[::4], LABELS[::4], IdentityMap(), 1.0, seed=0) is None
