"""Backbones by name. Each maps normalised images [B,3,H,W] to a feature map [B,F,h,w] or to tokens [B,T,F]."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from stream_odml.learn.backbone import Backbone
from stream_odml.learn.mobilenetv2 import MobileNetV2
from stream_odml.learn.named import TimmBackbone, TransformersBackbone
from stream_odml.learn.settings import EmbedderSpec


def build_backbone(spec: EmbedderSpec, architecture: dict[str, Any] | None) -> Backbone:
    """Return the backbone that `spec` names, with its pretrained weights if there are any, else whatever the current
    seed gives. Of a stored `architecture` no weights are loaded, and nothing is asked of the network. Raises
    ValueError for an unknown name, or weights that cannot be read or do not fit."""
    family, _, name = spec.backbone.partition(":")
    backbone: Backbone
    if family == "conv4" and not name:
        backbone = Conv4()
    elif family == "mobilenetv2" and not name:
        backbone = MobileNetV2()
    elif family == "transformers" and name:
        backbone = TransformersBackbone(name, spec.pretrained, architecture)
    elif spec.takes_vectors:
        backbone = Backbone()  # what comes is what it would give
    elif family == "timm" and name:
        backbone = TimmBackbone(name, spec.pretrained and architecture is None)
    else:
        raise ValueError(
            f"unknown backbone {spec.backbone!r}; expected conv4, mobilenetv2, "
            "transformers:<name or folder>, timm:<name>, or none for a stream of vectors"
        )
    if architecture is None and spec.weights is not None:
        _load_weights(backbone, spec.weights)
    return backbone


def _load_weights(backbone: Backbone, path: str) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
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

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in in (3, 64, 64, 64):
            layers += [
                nn.Conv2d(c_in, 64, 3, padding=1, bias=False),
                _GroupNorm(8, 64),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return features [B,64,H/16,W/16], rounded up, of images [B,3,H,W]."""
        features: Tensor = self.features(images_B3HW)
        return features
