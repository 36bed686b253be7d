"""Backbones by name. Each maps normalised images [B,3,H,W] to a feature map [B,F,h,w] or to tokens [B,T,F]."""

from __future__ import annotations

from typing import Any

from safetensors.torch import load_file

from stream_odml.learn.backbone import Backbone
from stream_odml.learn.conv4 import Conv4
from stream_odml.learn.mobilenetv2 import MobileNetV2
from stream_odml.learn.named import TimmBackbone, TransformersBackbone
from stream_odml.learn.settings import EmbedderSpec


def build_backbone(spec: EmbedderSpec, *, load: bool, architecture: dict[str, Any]) -> Backbone:
    """Return the backbone that `spec` names; with `load` its pretrained weights, else whatever the current seed gives.

    Raises ValueError for an unknown name, or weights that cannot be read or do not fit.
    """
    family, _, name = spec.backbone.partition(":")
    backbone: Backbone
    if family == "conv4" and not name:
        backbone = Conv4()
    elif family == "mobilenetv2" and not name:
        backbone = MobileNetV2()
    elif family == "transformers" and name:
        backbone = TransformersBackbone(name, load and spec.pretrained, architecture)
    elif spec.takes_vectors:
        backbone = Backbone()  # what comes is what it would give
    elif family == "timm" and name:
        backbone = TimmBackbone(name, load and spec.pretrained)
    else:
        raise ValueError(
            f"unknown backbone {spec.backbone!r}; expected conv4, mobilenetv2, "
            "transformers:<name or folder>, timm:<name>, or none for a stream of vectors"
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
