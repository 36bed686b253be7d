"""Metric losses on unit embeddings of one global batch. Without a negative a loss is 0, never NaN."""

# B global batch   d embedding   s_BB cosine similarities

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_odml.learn.geometry import gram
from stream_odml.learn.settings import Scalar, StageSettings


def pair_masks(labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return (positives, negatives), boolean [B, B]. An image is never its own positive."""
    same = labels_B[:, None] == labels_B[None, :]
    itself = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    return same & ~itself, ~same


class HardPairLoss(nn.Module):
    """Computes mean over P*_i of (1 - s) + mean over N*_i of s, averaged over anchors i; an empty N*_i counts 0. N*_i =
    {n: s_in > min_P s_ip - margin}, P*_i = {p: s_ip < max_N s_in + margin}."""

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, z_Bd: Tensor, labels_B: Tensor) -> Tensor:
        s_BB = gram(z_Bd)
        positive, negative = pair_masks(labels_B)
        least_positive = s_BB.detach().masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        most_negative = s_BB.detach().masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        hard_negative = negative & (s_BB > least_positive - self.margin)
        hard_positive = positive & (s_BB < most_negative + self.margin)
        per_anchor = _masked_mean(1 - s_BB, hard_positive) + _masked_mean(s_BB, hard_negative)
        return (per_anchor * hard_negative.any(1)).mean()


class BinomialDevianceLoss(nn.Module):
    """Computes mean_p softplus(-2 (s_ip - 0.5)) + mean_n softplus(40 (s_in - 0.5)), averaged over anchors i. Anchors
    without a positive or without a negative count 0."""

    def __init__(
        self, positive_scale: float = 2.0, negative_scale: float = 40.0, threshold: float = 0.5
    ) -> None:
        super().__init__()
        self.positive_scale, self.negative_scale, self.threshold = positive_scale, negative_scale, threshold

    def forward(self, z_Bd: Tensor, labels_B: Tensor) -> Tensor:
        s_BB = gram(z_Bd)
        positive, negative = pair_masks(labels_B)
        pull = _masked_mean(F.softplus(-self.positive_scale * (s_BB - self.threshold)), positive)
        push = _masked_mean(F.softplus(self.negative_scale * (s_BB - self.threshold)), negative)
        return ((pull + push) * (positive.any(1) & negative.any(1))).mean()


class SupervisedContrastiveLoss(nn.Module):
    """Computes -mean_p log(exp(s_ip / T) / Σ_{a != i} exp(s_ia / T)), averaged over anchors i (Khosla et al., 2020).
    Anchors without a positive or without a negative count 0."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature {temperature}, expected a number above 0")
        self.temperature = temperature

    def forward(self, z_Bd: Tensor, labels_B: Tensor) -> Tensor:
        positive, negative = pair_masks(labels_B)
        logits_BB = gram(z_Bd) / self.temperature
        others = positive | negative
        # A finite filler: minus infinity would make NaN gradients for a row without others.
        log_sum = logits_BB.masked_fill(~others, -1e9).logsumexp(1, keepdim=True)
        per_anchor = -_masked_mean(logits_BB - log_sum, positive)
        return (per_anchor * (positive.any(1) & negative.any(1))).mean()


class LibraryLoss(nn.Module):
    """Wraps a loss of pytorch_metric_learning, with a miner where one is named."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, z_Bd: Tensor, labels_B: Tensor) -> Tensor:
        if bool((labels_B == labels_B[0]).all()):
            return z_Bd.sum() * 0.0
        mined = self.miner(z_Bd, labels_B) if self.miner is not None else None
        return cast(Tensor, self.loss(z_Bd, labels_B, mined))


_BY_HAND: dict[str, type[nn.Module]] = {
    "hard_pairs": HardPairLoss,
    "binomial": BinomialDevianceLoss,
    "supcon": SupervisedContrastiveLoss,
}


def build_metric_loss(settings: StageSettings, n_classes: int, dim: int, seed: int) -> nn.Module:
    """Build L_M by name: a module of (unit embeddings [B, d], labels [B] in 0..n_classes-1) -> scalar.

    Losses with weights of their own (proxies) are initialised from `seed` and sized by `n_classes` and `dim`, which a
    constructor takes as `num_classes` and `embedding_size`. Raises ValueError for an unknown name or argument.
    """
    name, args = settings.metric_loss, dict(settings.metric_loss_args)
    if name in _BY_HAND:
        return _construct(_BY_HAND[name], name, args)
    if ":" not in name:
        raise ValueError(
            f"unknown metric_loss {name!r}; expected {', '.join(_BY_HAND)}, pml:<class name>, or module:Class of "
            "your own"
        )
    is_library = name.startswith("pml:")
    cls = _library_class("losses", name.removeprefix("pml:")) if is_library else _own_class(name)
    # Proxies are counted and sized by the task; some losses pass these on to the class they extend.
    wanted = {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}
    sizes = {"num_classes": n_classes, "embedding_size": dim}
    args = {**{k: v for k, v in sizes.items() if k in wanted}, **args}
    miner = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = _construct(cls, name, args)
        if settings.miner is not None:
            miner = _construct(
                _library_class("miners", settings.miner), settings.miner, dict(settings.miner_args)
            )
    return LibraryLoss(loss, miner) if is_library else loss


def _own_class(name: str) -> Any:
    """Import a class of the user's by `module:Class`."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"metric_loss {name!r} cannot be had ({error}); its module must be importable where training runs"
        ) from error
    if not isinstance(found, type):
        raise ValueError(f"metric_loss {name!r} is no class; name a subclass of torch.nn.Module")
    return found


def _library_class(module: str, name: str) -> Any:
    library = importlib.import_module(f"pytorch_metric_learning.{module}")
    if not hasattr(library, name):
        raise ValueError(
            f"pytorch_metric_learning.{module} has no {name!r}; see its documentation for the names"
        )
    return getattr(library, name)


def _construct(cls: Any, name: str, args: dict[str, Scalar]) -> nn.Module:
    try:
        built = cls(**args)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} does not take the arguments {args}: {error!r}") from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"{name!r} is no module that could be called with embeddings and labels")
    return built


def _masked_mean(values_BB: Tensor, mask_BB: Tensor) -> Tensor:
    """Return the mean of each row where the mask holds, 0 where it holds nowhere, [B]."""
    return (values_BB * mask_BB).sum(1) / mask_BB.sum(1).clamp_min(1)
