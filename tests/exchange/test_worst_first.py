"""The items of a mapped root that are embedded again first, against the same computed item by item."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from stream_odml.exchange.expectation import class_means
from stream_odml.exchange.pairs import Pairs
from stream_odml.exchange.worst_first import Examiner, worst_of_shards
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.cross_map import fit_cross_map
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.store.ledger_states import ShardState

CLASSES = tuple("abcd"[n % 4] for n in range(60))


def pairs() -> Pairs:
    random = np.random.default_rng(0)
    mean = {name: 2 * random.standard_normal(6) for name in "abcd"}
    old = np.stack([mean[name] + random.standard_normal(6) for name in CLASSES])
    new = old @ random.standard_normal((6, 5)) + random.standard_normal((60, 5))
    return Pairs(old.astype(np.float32), new.astype(np.float32), CLASSES, ("",) * 60)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_what_is_said_of_items_is_so_of_their_undrawn_predictions() -> None:
    known = pairs()
    cross = fit_cross_map(known.old_nD, known.new_nF, known.classes)
    centres = class_means([(cross.apply(known.old_nD, known.classes), known.classes)])
    sums = ClassSums.of(Lift(5), encode(known.new_nF), known.classes)
    head = solve_head(sums, HeadSettings(weighing="equal"))
    part = slice(0, head.known_dim)
    asked, names = known.old_nD[:9], [*known.classes[:8], "unknown"]
    missed, rivalry = Examiner(cross.drawn_to(centres, 0.3), known)(asked, names)
    for row, name in enumerate(names):
        predicted = cross.apply(asked[row : row + 1], [name])
        assert missed[row] == pytest.approx(max(1e-6, 1 - (predicted**2).sum()), abs=1e-5)
        z = head.embed(predicted)[0, part]
        near = {other: cosine(z, head.embed(centre[None])[0, part]) for other, centre in centres.items()}
        own = near.pop(name, float("nan"))
        assert rivalry[row] == pytest.approx(max(near.values()) - own, abs=1e-4, nan_ok=True)


def test_the_worst_are_a_share_of_the_mapped_items_of_all_shards() -> None:
    missed = np.array([0.5, 0, 0.7, 0.5, 0.1, 0.2], np.float32)
    rivalry = np.array([-0.1, 0.9, -0.1, -0.1, np.nan, 0.2], np.float32)
    rows = np.array([0, 2, 9, 0, 1, 3])
    found = worst_of_shards(missed, rivalry, rows, {"a": (0, 3), "none": (3, 3), "b": (3, 6)}, share=0.6)
    assert [one.error for one in found.values()] == pytest.approx([0.4, 0.0, 0.8 / 3])

    def apart(values: list[float]) -> list[float]:
        mean = sum(values) / len(values)
        deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        return [(v - mean) / deviation for v in values]

    by_missed, by_rivalry = apart([0.5, 0.7, 0.5, 0.1, 0.2]), apart([-0.1, -0.1, -0.1, 0.2])
    both = [m + r for m, r in zip(by_missed, [*by_rivalry[:3], 0.0, by_rivalry[3]], strict=True)]
    order = sorted(range(5), key=lambda item: (-both[item], item))[:3]
    places = [("a", 0), ("a", 9), ("b", 0), ("b", 1), ("b", 3)]
    stored = {shard: shard_with(one.rows).worst_rows.tolist() for shard, one in found.items()}
    assert sorted(places[item] for item in order) == [(shard, row) for shard in "ab" for row in stored[shard]]
    assert places[order[-1]] == ("a", 0), "of two that are alike the first"
    assert stored["none"] == []


def shard_with(worst: str) -> ShardState:
    counts = {"adopted": {"worst": worst}}
    return ShardState("a", "a", "", "parquet", 0, "indexed", 0, datetime.now(UTC), {}, counts=counts)
