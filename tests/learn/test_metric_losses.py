"""Every metric loss against plain Python loops over points placed by angle on a circle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from stream_odml.learn.metric_losses import (
    BinomialDevianceLoss,
    HardPairLoss,
    SupervisedContrastiveLoss,
    build_metric_loss,
)
from stream_odml.learn.settings import StageSettings
from tests.learn.circle import cos, on_circle

ANGLES = (0.0, 10.0, 50.0, 20.0, 45.0, 130.0, 200.0)
LABELS = (0, 0, 0, 1, 1, 2, 3)  # classes 2 and 3 have no positive


def pairs(i: int) -> tuple[list[float], list[float]]:
    positives = [cos(ANGLES[i], ANGLES[j]) for j in range(7) if j != i and LABELS[j] == LABELS[i]]
    negatives = [cos(ANGLES[i], ANGLES[j]) for j in range(7) if LABELS[j] != LABELS[i]]
    return positives, negatives


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def hard_pairs(i: int, margin: float) -> float:
    positives, negatives = pairs(i)
    if not positives:
        return 0.0
    hard_negatives = [s for s in negatives if s > min(positives) - margin]
    hard_positives = [s for s in positives if s < max(negatives) + margin]
    return mean([1 - s for s in hard_positives]) + mean(hard_negatives) if hard_negatives else 0.0


def binomial(i: int) -> float:
    positives, negatives = pairs(i)
    if not positives:
        return 0.0
    pull = mean([math.log1p(math.exp(-2 * (s - 0.5))) for s in positives])
    return pull + mean([math.log1p(math.exp(40 * (s - 0.5))) for s in negatives])


def contrastive(i: int, temperature: float) -> float:
    positives, negatives = pairs(i)
    total = sum(math.exp(s / temperature) for s in positives + negatives)
    return -mean([math.log(math.exp(s / temperature) / total) for s in positives])


def test_hard_pairs_equal_the_loops() -> None:
    loss = HardPairLoss(0.1)(on_circle(*ANGLES), torch.tensor(LABELS))
    assert loss.item() == pytest.approx(sum(hard_pairs(i, 0.1) for i in range(7)) / 7, rel=1e-9)


def test_hard_pairs_of_well_separated_classes_are_zero() -> None:
    loss = HardPairLoss(0.1)(on_circle(0, 5, 180, 185), torch.tensor([0, 0, 1, 1]))
    assert loss.item() == 0.0


def test_binomial_deviance_equals_the_loops() -> None:
    loss = BinomialDevianceLoss()(on_circle(*ANGLES), torch.tensor(LABELS))
    assert loss.item() == pytest.approx(sum(map(binomial, range(7))) / 7, rel=1e-6)


def test_supervised_contrastive_equals_the_loops() -> None:
    loss = SupervisedContrastiveLoss(0.1)(on_circle(*ANGLES), torch.tensor(LABELS))
    assert loss.item() == pytest.approx(sum(contrastive(i, 0.1) for i in range(7)) / 7, rel=1e-9)


ALL = [
    StageSettings(metric_loss="hard_pairs", metric_loss_args={"margin": 0.2}),
    StageSettings(metric_loss="binomial"),
    StageSettings(metric_loss="supcon"),
    StageSettings(
        metric_loss="pml:MultiSimilarityLoss", miner="MultiSimilarityMiner", miner_args={"epsilon": 0.2}
    ),
    StageSettings(metric_loss="pml:ProxyAnchorLoss", metric_loss_args={"margin": 0.2}),
    StageSettings(metric_loss="pml:CosFaceLoss"),
    StageSettings(metric_loss="pml:SubCenterArcFaceLoss", metric_loss_args={"sub_centers": 2}),
    StageSettings(metric_loss="pml:TripletMarginLoss"),
]


def value_and_gradient(loss: nn.Module, z_Bd: Tensor, labels_B: Tensor) -> tuple[float, Tensor]:
    z_Bd = z_Bd.clone().requires_grad_()
    value = loss(z_Bd, labels_B)
    (gradient,) = torch.autograd.grad(value, z_Bd)
    return value.item(), gradient


@pytest.mark.parametrize("settings", ALL, ids=lambda s: s.metric_loss)
def test_without_a_negative_every_loss_is_zero(settings: StageSettings) -> None:
    loss = build_metric_loss(settings, 4, 2, seed=0)
    value, gradient = value_and_gradient(loss, on_circle(0, 40, 80).float(), torch.zeros(3, dtype=torch.long))
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("settings", ALL, ids=lambda s: s.metric_loss)
def test_identical_and_zero_embeddings_give_finite_losses_and_gradients(settings: StageSettings) -> None:
    loss = build_metric_loss(settings, 4, 2, seed=0)
    labels = torch.tensor([0, 0, 1, 1])
    for z in (on_circle(30, 30, 30, 30).float(), torch.zeros(4, 2)):
        value, gradient = value_and_gradient(loss, z, labels)
        assert math.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_the_library_loss_is_the_library_s() -> None:
    from pytorch_metric_learning.losses import ContrastiveLoss

    settings = StageSettings(metric_loss="pml:ContrastiveLoss", metric_loss_args={"neg_margin": 0.5})
    ours = build_metric_loss(settings, 4, 2, seed=0)(on_circle(*ANGLES).float(), torch.tensor(LABELS))
    theirs = ContrastiveLoss(neg_margin=0.5)(on_circle(*ANGLES).float(), torch.tensor(LABELS))
    assert ours.item() == theirs.item()


def test_proxies_come_from_the_seed() -> None:
    settings = StageSettings(metric_loss="pml:ProxyAnchorLoss")
    first, again, other = (build_metric_loss(settings, 4, 2, seed=s) for s in (1, 1, 2))
    proxies = [next(loss.parameters()) for loss in (first, again, other)]
    assert torch.equal(proxies[0], proxies[1])
    assert not torch.equal(proxies[0], proxies[2])


def test_unknown_names_and_arguments_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="unknown metric_loss 'triplet'; expected hard_pairs"):
        build_metric_loss(StageSettings(metric_loss="triplet"), 4, 2, 0)
    with pytest.raises(ValueError, match="has no 'NoLoss'"):
        build_metric_loss(StageSettings(metric_loss="pml:NoLoss"), 4, 2, 0)
    with pytest.raises(ValueError, match="does not take the arguments"):
        build_metric_loss(StageSettings(metric_loss="supcon", metric_loss_args={"margin": 1.0}), 4, 2, 0)
