"""Backbones by name. Each maps normalised images [B,3,H,W] to a feature map [B,F,h,w] or to tokens
[B,T,F]."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from stream_odml.learn.settings import EmbedderSpec

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Backbone(nn.Module):
    """What an embedder needs of a backbone: its features and the constants that belong to it."""

    pixel_statistics: tuple[tuple[float, ...], tuple[float, ...]] = SYMMETRIC
    """Mean and deviation of the pixels it wants."""
    default_pooling: str = "mean"
    prefix_tokens: int = 1
    """Tokens before the patches (class and registers), when the features are tokens."""

    def architecture(self) -> dict[str, Any]:
        """What `build_backbone` needs, beside the spec, to build it again without its weights or the
        network."""
        return {}


class _GroupNorm(nn.GroupNorm):
    """Never in bfloat16, for which torch's kernel, channels last, takes three times as long as for float32."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.group_norm(wide, self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


class Conv4(Backbone):
    """Four times convolution, group norm, max-pooling, ReLU, for drawings of 28 to 105 pixels.

    ReLU after the pooling, with which it commutes to the last bit, gradients too: a quarter of the numbers.

    Group norm and not batch norm: the loss is then the same on 1 rank and on N, on the CPU too.
    """

    default_pooling = "flatten"

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in in (3, channels, channels, channels):
            layers += [
                nn.Conv2d(c_in, channels, 3, padding=1, bias=False),
                _GroupNorm(8, channels),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,64,H/16,W/16], rounded up."""
        features: Tensor = self.features(images_B3HW)
        return features


def build_backbone(spec: EmbedderSpec, *, load: bool, architecture: dict[str, Any]) -> Backbone:
    """The backbone that `spec` names; with `load` its pretrained weights, else whatever the current
    seed gives.

    Raises ValueError for an unknown name, or weights that cannot be read or do not fit.
    """
    family, _, name = spec.backbone.partition(":")
    backbone: Backbone
    if family == "conv4" and not name:
        backbone = Conv4()
    elif family == "mobilenetv2" and not name:
        from stream_odml.learn.mobilenetv2 import MobileNetV2

        backbone = MobileNetV2()
    elif family == "transformers" and name:
        from stream_odml.learn.named import TransformersBackbone

        backbone = TransformersBackbone(name, load and spec.pretrained, architecture)
    elif family == "timm" and name:
        from stream_odml.learn.named import TimmBackbone

        backbone = TimmBackbone(name, load and spec.pretrained)
    else:
        raise ValueError(
            f"unknown backbone {spec.backbone!r}; expected conv4, mobilenetv2, "
            "transformers:<name or folder> or timm:<name>"
        )
    if load and spec.weights is not None:
        _load_weights(backbone, spec.weights)
    return backbone


def _load_weights(backbone: Backbone, path: str) -> None:
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ValueError(f"weights {path!r} cannot be read as safetensors: {error}") from error
    wanted = {k for k in backbone.state_dict() if not k.endswith("num_batches_tracked")}
    missing = sorted(wanted - set(tensors))
    if missing:
        raise ValueError(
            f"weights {path!r} lack {len(missing)} tensors of {type(backbone).__name__}, "
            f"the first {missing[0]!r}; "
            "they belong to another architecture"
        )
    try:
        backbone.load_state_dict({k: t.float() for k, t in tensors.items() if k in wanted}, strict=False)
    except RuntimeError as error:
        raise ValueError(f"weights {path!r} do not fit {type(backbone).__name__}: {error}") from error


def pool(features: Tensor, how: str, prefix_tokens: int) -> Tensor:
    """Features [B,F,h,w] or tokens [B,T,F] to vectors [B,F'], by mean, max, gem, flatten or cls."""
    if features.ndim == 3 and how == "cls":
        return features[:, 0]
    if features.ndim == 3:
        features = features[:, prefix_tokens:].transpose(1, 2)
    elif how == "cls":
        raise ValueError("pooling 'cls' needs a backbone with tokens; use mean, max, gem or flatten")
    features_BFp = features.flatten(2)
    if how == "mean":
        return features_BFp.mean(dim=2)
    if how == "max":
        return features_BFp.amax(dim=2)
    if how == "gem":
        return features_BFp.clamp_min(1e-6).pow(3).mean(dim=2).pow(1 / 3)
    return features_BFp.flatten(1)


def frozen_norms(module: nn.Module) -> list[nn.Module]:
    """Every batch norm in a module: the layers whose running statistics a stage must not touch."""
    return [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
