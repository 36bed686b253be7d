"""Kernels, the bank's move and virtual features against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import AffineMap
from stream_odml.learn.finish import FinishPass
from stream_odml.learn.geometry import kernel_mean, kernel_weights
from stream_odml.learn.packing import Floats
from stream_odml.learn.settings import KernelName, StageSettings
from stream_odml.learn.virtual import VirtualFeatures, virtual_versions
from stream_odml.learn.world import World
from tests.learn.circle import cos, on_circle

KERNELS: tuple[KernelName, ...] = ("cosine", "clamped", "softmax", "gaussian")


def naive(kernel: KernelName, a: float, b: float, width: float) -> float:
    s = cos(a, b)
    if kernel == "cosine":
        return s
    if kernel == "clamped":
        return max(s, 0.0)
    if kernel == "softmax":
        return math.exp(s / width)  # up to a factor, which every normalised use cancels
    return math.exp(-(2 - 2 * s) / (2 * width**2))


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_mean_equals_the_loops(kernel: KernelName) -> None:
    rows, centres, width = (0.0, 40.0), (10.0, 80.0, 100.0), 0.5
    values = np.array([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])
    w = kernel_weights(5 * on_circle(*rows), 2 * on_circle(*centres), kernel, width)
    result = kernel_mean(w, torch.from_numpy(values), floor=0.0)
    for i, row in enumerate(rows):
        weights = [naive(kernel, row, c, width) for c in centres]
        expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        assert result[i].numpy() == pytest.approx(expected, rel=1e-6)


def test_weights_that_cancel_fall_back_to_the_plain_mean() -> None:
    values = torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    opposite = kernel_weights(on_circle(0), on_circle(0.5, 180), "cosine", 1.0)
    assert kernel_mean(opposite, values, floor=0.05)[0].tolist() == [2.0, 0.0]
    nothing = kernel_weights(on_circle(0), on_circle(180, 170), "clamped", 1.0)
    assert kernel_mean(nothing, values, floor=0.05)[0].tolist() == [2.0, 0.0]
    underflow = kernel_weights(on_circle(0), on_circle(180, 170), "gaussian", 0.01)
    assert kernel_mean(underflow, values, floor=0.0)[0].tolist() == [2.0, 0.0]


def bank_at(*angles: float, created: tuple[str, ...]) -> ClassBank:
    g = 2 * on_circle(*angles).numpy()
    bank = ClassBank.empty(2)
    for i, (row, birth) in enumerate(zip(g, created, strict=True)):
        bank = bank.with_classes([f"c{i}"], birth, np.array([4]), row[None], row[None] / 2)
    return bank


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bank_moves_by_the_weighted_drift(kernel: KernelName) -> None:
    settings = StageSettings(kernel=kernel, kernel_width=0.4, kernel_floor=0.0)
    bank = bank_at(0, 70, created=("v1", "v1"))
    parent_angles, child_angles = (10.0, 50.0, 60.0), (20.0, 45.0, 90.0)
    parent, child = on_circle(*parent_angles), 3 * on_circle(*child_angles)
    finish = FinishPass(settings, bank, 2, 2, World())
    finish.add(parent[:2], child[:2], torch.tensor([0, 1]), np.arange(2))
    finish.add(parent[2:], child[2:], torch.tensor([1]), np.arange(1))
    moved, _ = finish._moved_bank(finish._pairs.of_images(), "v2")
    delta = (child - parent).numpy()
    for c, angle in enumerate((0.0, 70.0)):
        weights = [naive(kernel, angle, a, 0.4) for a in parent_angles]
        expected = bank.means[c] + sum(w * d for w, d in zip(weights, delta, strict=True)) / sum(weights)
        assert moved.means[c] == pytest.approx(expected, rel=1e-5)
        assert moved.directions[c] == pytest.approx(expected / np.linalg.norm(expected), rel=1e-5)
        assert moved.origin_means[c] == pytest.approx(bank.origin_means[c])


@pytest.mark.parametrize("kernel", KERNELS)
def test_virtual_features_by_kernel_equal_the_loops(kernel: KernelName) -> None:
    settings = StageSettings(kernel=kernel, kernel_width=0.4, kernel_floor=0.0)
    drift = np.array([[0.3, 0.1], [-0.2, 0.4], [9.0, 9.0]])
    bank = bank_at(0, 70, 30, created=("v1", "v1", "v2")).moved(drift, "v2")
    assert virtual_versions(bank) == ["v1"]  # v2 is the parent itself
    images = (20.0, 60.0)
    (virtual,) = VirtualFeatures(bank, settings, {}, torch.device("cpu"))(2 * on_circle(*images).float())
    for i, angle in enumerate(images):
        g = 2 * on_circle(angle)[0].numpy()
        weights = [
            naive(kernel, math.degrees(math.atan2(u[1], u[0])), angle, 0.4) for u in bank.directions[:2]
        ]
        moved = sum(w * d for w, d in zip(weights, drift[:2], strict=True)) / sum(weights)
        expected: Floats = (g - moved) / np.linalg.norm(g - moved)
        assert virtual[i].numpy() == pytest.approx(expected, rel=1e-4)


def test_virtual_features_by_backward_maps() -> None:
    settings = StageSettings(virtual="affine")
    bank = bank_at(0, 70, created=("v1", "v2"))
    quarter_turn = AffineMap(np.array([[0.0, -1.0], [1.0, 0.0]]), np.zeros(2))
    virtual = VirtualFeatures(bank, settings, {"v1": quarter_turn}, torch.device("cpu"))
    (turned,) = virtual(5 * on_circle(10).float())
    assert turned.numpy() == pytest.approx(on_circle(100).numpy(), rel=1e-5)
    with pytest.raises(ValueError, match="needs a backward map to v1"):
        VirtualFeatures(bank, settings, {}, torch.device("cpu"))
