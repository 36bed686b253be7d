"""P x K batches: what each rank sees, and that nothing but seed and step decides it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from stream_odml.ingest.sampler import PKSampler

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), [2, 3, 4, 5, 6, 50, 100, 7, 8, 1000]))


def test_p_classes_of_k_images_in_every_slot() -> None:
    sampler = PKSampler(LABELS, 6, 4, seed=1)
    for step in range(50):
        batch = sampler.batch(step)
        slots = LABELS[batch].reshape(6, 4)
        assert (slots == slots[:, :1]).all()
        assert len(set(slots[:, 0])) == 6
        for slot in batch.reshape(6, 4):
            have = int((LABELS[slot[0]] == LABELS).sum())
            assert len(set(slot)) == min(4, have)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_slices_are_the_same_global_batch_and_hold_different_classes(world_size: int) -> None:
    one, many = PKSampler(LABELS, 6, 4, seed=1), PKSampler(LABELS, 6, 4, seed=1, world_size=world_size)
    for step in (0, 1, 7, 1000):
        parts = [many.slice(step, rank) for rank in range(world_size)]
        assert (np.concatenate(parts) == one.batch(step)).all()
        classes = [set(LABELS[part]) for part in parts]
        assert len(set.union(*classes)) == sum(len(some) for some in classes)


def test_pure_function_of_seed_and_step() -> None:
    forth, back = PKSampler(LABELS, 4, 4, seed=3), PKSampler(LABELS, 4, 4, seed=3)
    seen = [forth.batch(step) for step in range(20)]
    assert all((back.batch(step) == seen[step]).all() for step in reversed(range(20)))
    assert any((PKSampler(LABELS, 4, 4, seed=4).batch(step) != seen[step]).any() for step in range(20))


def test_each_class_comes_in_every_pass_whatever_its_size() -> None:
    sampler = PKSampler(LABELS, 4, 2, seed=0)
    for first in range(0, 30, 3):
        assert set(LABELS[np.concatenate([sampler.batch(first + i) for i in range(3)])]) == set(range(10))


def test_images_of_a_class_are_drawn_evenly() -> None:
    labels = np.repeat([0, 1], [12, 9])
    sampler = PKSampler(labels, 2, 4, seed=0)
    counts = np.bincount(np.concatenate([sampler.batch(step) for step in range(3000)]), minlength=21)
    assert np.abs(counts[:12] / 1000 - 1).max() < 0.1
    assert np.abs(counts[12:] / (12_000 / 9) - 1).max() < 0.1


def test_few_images_are_repeated_evenly() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    for step in range(20):
        slot = PKSampler(labels, 2, 8, seed=0).batch(step)
        few = np.bincount(slot[labels[slot] == 0], minlength=3)
        assert sorted(few) == [2, 3, 3]


def test_fewer_classes_than_slots_keep_the_batch_size() -> None:
    labels = np.repeat([5, 9, 11], [40, 3, 40])
    sampler = PKSampler(labels, 8, 4, seed=2, world_size=4)
    for step in range(10):
        batch = sampler.batch(step)
        assert len(batch) == 32
        slots = labels[batch].reshape(8, 4)
        assert (slots == slots[:, :1]).all()
        assert sorted(np.unique(slots[:, 0], return_counts=True)[1]) == [2, 3, 3]
        for name in (5, 11):
            chosen = batch[labels[batch] == name]
            assert len(set(chosen)) == len(chosen)
        assert all(len(sampler.slice(step, rank)) == 8 for rank in range(4))


@pytest.mark.parametrize(
    ("labels", "p", "k", "ranks", "message"),
    [
        ([0, 0], 2, 2, 1, "two are needed"),
        ([0, 1], 3, 2, 2, "use a multiple"),
        ([0, 1], 2, 0, 1, "at least 1"),
    ],
)
def test_what_cannot_work_says_so(labels: list[int], p: int, k: int, ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PKSampler(np.array(labels), p, k, 0, ranks)


def test_a_step_costs_little() -> None:
    labels = np.random.default_rng(0).integers(0, 5000, 1_000_000)
    sampler = PKSampler(labels, 64, 4, seed=0, world_size=2)
    sampler.batch(0)
    start = time.process_time()
    for step in range(200):
        sampler.slice(step, 0)
    assert (time.process_time() - start) / 200 < 0.002
