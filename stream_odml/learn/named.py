"""Backbones by the names people already use: Hugging Face transformers, and timm as an extra."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from stream_odml.learn.backbone import IMAGENET, Backbone
from stream_odml.wording import first_line

_UNUSED = {"convnext": ("layernorm",), "convnextv2": ("layernorm",), "siglip_vision_model": ("head",)}
"""Beside `pooler`, what does not go into the last hidden state."""


class TransformersBackbone(Backbone):
    """A vision model of transformers (ResNet, ViT, DINOv2, ConvNeXt ...) by name or local folder. Its configuration
    travels with the embedder, so a saved one is built again without folder or network."""

    def __init__(self, name: str, pretrained: bool, architecture: dict[str, Any] | None) -> None:
        super().__init__()
        transformers = importlib.import_module("transformers")
        try:
            if architecture:
                fields = dict(architecture["config"])
                config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
            else:
                config = transformers.AutoConfig.from_pretrained(name)
            made, loads = transformers.AutoModel, pretrained and architecture is None
            model: nn.Module = made.from_pretrained(name) if loads else made.from_config(config)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"backbone 'transformers:{name}' cannot be built ({first_line(error)}); expected the name of a vision "
                "model, which is loaded over the network once, or a local folder made by save_pretrained"
            ) from error
        for unused in ("pooler", *_UNUSED.get(config.model_type, ())):
            # Features are pooled here: what only pools learns nothing.
            if isinstance(getattr(model, unused, None), nn.Module):
                setattr(model, unused, nn.Identity())
        self.model = model
        self.prefix_tokens = _prefix_tokens(model)
        self.default_pooling = "cls" if self.prefix_tokens else "mean"
        pixels = architecture["pixels"] if architecture else self._pixels(name)
        self._architecture = {"config": config.to_dict(), "pixels": pixels}
        self.pixel_statistics = tuple(map(tuple, pixels))  # type: ignore[assignment]

    @staticmethod
    def _pixels(name: str) -> list[list[float]]:
        mixin = importlib.import_module("transformers.image_processing_base").ImageProcessingMixin
        try:
            found, _ = mixin.get_image_processor_dict(name)
            return [list(found["image_mean"]), list(found["image_std"])]
        except (OSError, KeyError):
            return [list(part) for part in IMAGENET]  # a folder without preprocessor file

    def architecture(self) -> dict[str, Any]:
        return self._architecture

    def forward(self, images_B3HW: Tensor) -> Tensor:
        features: Tensor = self.model(images_B3HW).last_hidden_state
        return features


def _prefix_tokens(model: nn.Module) -> int:
    """Return how many tokens stand before the patches: class, distillation and registers, where a model has them
    (Swin and SigLIP have none)."""
    before = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
    ends = tuple(f"embeddings.{name}" for name in before)
    return sum(
        parameter.numel() // parameter.shape[-1]
        for name, parameter in model.named_parameters()
        if name.endswith(ends)
    )


class TimmBackbone(Backbone):
    """A model of timm by name; needs the extra `stream-odml[timm]`."""

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        try:
            timm = importlib.import_module("timm")
        except ImportError as error:
            raise ValueError(
                f"backbone 'timm:{name}' needs timm, which is not installed; "
                "install stream-odml[timm], or use a `transformers:` backbone"
            ) from error
        made: Any = timm.create_model
        self.model: nn.Module = made(name, pretrained=pretrained, num_classes=0, global_pool="")
        config = getattr(self.model, "pretrained_cfg", {}) or {}
        mean, std = config.get("mean", IMAGENET[0]), config.get("std", IMAGENET[1])
        self.pixel_statistics = (tuple(mean), tuple(std))
        self.prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))
        self.default_pooling = "cls" if self.prefix_tokens else "mean"

    def forward(self, images_B3HW: Tensor) -> Tensor:
        features: Tensor = self.model(images_B3HW)
        return features
