"""What an embedder needs of any backbone, and the pooling of its features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Backbone(nn.Module):
    """What an embedder needs of a backbone: its features and the constants that belong to it."""

    pixel_statistics: tuple[tuple[float, ...], tuple[float, ...]] = SYMMETRIC
    """Mean and deviation of the pixels it wants."""
    default_pooling: str = "mean"
    prefix_tokens: int = 0
    """Tokens before the patches (class and registers), when the features are tokens."""

    def architecture(self) -> dict[str, Any]:
        """Return the settings, besides the spec, from which `build_backbone` rebuilds it without weights or network."""
        return {}


def pool(features: Tensor, how: str, prefix_tokens: int) -> Tensor:
    """Pool features [B,F,h,w] or tokens [B,T,F] to vectors [B,F'], by mean, max, gem, flatten or cls."""
    if how == "cls" and not (features.ndim == 3 and prefix_tokens):
        raise ValueError("pooling 'cls' needs a backbone with a class token; use mean, max, gem or flatten")
    if how == "cls":
        return features[:, 0]
    if features.ndim == 3:
        features = features[:, prefix_tokens:].transpose(1, 2)
    features_BFp = features.flatten(2)
    if how == "mean":
        return features_BFp.mean(dim=2)
    if how == "max":
        return features_BFp.amax(dim=2)
    if how == "gem":
        return features_BFp.clamp_min(1e-6).pow(3).mean(dim=2).pow(1 / 3)
    return features_BFp.flatten(1)


def frozen_norms(module: nn.Module) -> list[nn.Module]:
    """Return every batch norm in a module: the layers whose running statistics a stage must not touch."""
    return [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
