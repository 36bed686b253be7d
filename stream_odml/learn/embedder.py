"""The embedder: backbone, pooling, head. Its output is the raw g; whoever compares embeddings
normalises them. Under a discriminant head, which is solved apart from it, it is the trunk alone: its output is h."""

# B images   d embedding (D under a discriminant head)   H, W sides   N images in memory, channels last

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stream_odml.learn.backbone import IMAGENET, SYMMETRIC, Backbone, frozen_norms, pool
from stream_odml.learn.backbones import build_backbone
from stream_odml.learn.packing import BadArtifact, pack, unpack
from stream_odml.learn.settings import EmbedderSpec

_PIXEL_STATISTICS = {
    "imagenet": IMAGENET,
    "symmetric": SYMMETRIC,
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Embedder(nn.Module):
    """f: images [B,3,H,W] in 0..1 -> raw embeddings g [B,d]. Of a stream of vectors: the identity."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EmbedderSpec, backbone: Backbone) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.norms_frozen = spec.starts_pretrained
        self.takes_vectors = spec.takes_vectors
        mean, std = _PIXEL_STATISTICS.get(spec.normalisation, backbone.pixel_statistics)
        is_stored = not self.takes_vectors
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=is_stored)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=is_stored)
        self.shows_features = False
        """Whether the output is g, and after it, in the same row, the pooled features h that it is made of."""
        self.pooling = spec.pooling if spec.pooling != "auto" else backbone.default_pooling
        self.head: nn.Module = nn.Identity()
        features = self._count_features()
        self.out_dim = features if spec.head == "discriminant" else spec.dim
        if spec.head == "linear":
            self.head = nn.Linear(features, spec.dim)
        elif features != self.out_dim:
            raise ValueError(
                f"head 'none': dim is {spec.dim}, but {spec.backbone} gives {features}; set dim: {features}"
            )

    def _count_features(self) -> int:
        """Ask the backbone by one black image, without letting its batch norms see it."""
        if self.takes_vectors:
            if not self.spec.input_dim:
                raise ValueError("input_dim is 0: say how long the vectors are, which `backbone: none` takes")
            return self.spec.input_dim
        self.eval()
        side = self.spec.image_size
        with torch.no_grad():
            features = self._features(torch.zeros(1, 3, side, side)).shape[1]
        self.train()
        return features

    def _features(self, images_B3HW: Tensor) -> Tensor:
        if self.takes_vectors:
            return images_B3HW
        maps = self.backbone((images_B3HW - self.mean) / self.std)
        return pool(maps, self.pooling, self.backbone.prefix_tokens)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return raw g [B, d], always float32."""
        h_BD = self._features(images_B3HW)
        g_Bd: Tensor = self.head(h_BD)
        return torch.cat([g_Bd, h_BD], dim=1).float() if self.shows_features else g_Bd.float()

    def apply_linear(self, W_dd: Tensor) -> None:
        """Make every embedding g to W g, by the head, which must be a linear layer."""
        assert isinstance(self.head, nn.Linear)
        with torch.no_grad():
            for part in (self.head.weight, self.head.bias):
                part.copy_(W_dd.to(part.device) @ part.double())

    def train(self, mode: bool = True) -> Embedder:
        """Set the mode as nn.Module.train does, except that frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.norms_frozen:
            for norm in frozen_norms(self.backbone):
                norm.eval()
        return self


def build_embedder(spec: EmbedderSpec, seed: int, architecture: dict[str, Any] | None = None) -> Embedder:
    """Return a fresh embedder: pretrained weights where the spec names some, the rest from `seed`; the global
    RNG is kept. `architecture`: of a stored one, whose weights are loaded afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Embedder(spec, build_backbone(spec, architecture))


def with_training_head(trunk: Embedder, seed: int) -> Embedder:
    """Return a copy of a trunk with a linear layer in front of the loss, from `seed`: a trunk that is trained
    without one learns far less (`METHOD.md`)."""
    assert trunk.spec.head == "discriminant"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained = Embedder(replace(trunk.spec, head="linear", lift=0), copy.deepcopy(trunk.backbone).cpu())
    trained.norms_frozen = trunk.norms_frozen
    return trained


def trunk_of(trained: Embedder, spec: EmbedderSpec) -> Embedder:
    """Return the inverse of `with_training_head`, around the same backbone."""
    return Embedder(spec, trained.backbone.cpu())


def training_layer(trained: Embedder) -> NDArray[np.float64] | None:
    """Return the weights W [d, D] of the linear layer in front of the loss; None for a model without one."""
    if not isinstance(trained.head, nn.Linear):
        return None
    W_dD: NDArray[np.float64] = trained.head.weight.detach().double().cpu().numpy()
    return W_dD


def embedder_to_bytes(embedder: Embedder) -> bytes:
    """Return weights as safetensors, with the spec and the architecture in its header."""
    arrays = {k: t.detach().cpu().contiguous().numpy() for k, t in embedder.state_dict().items()}
    architecture = embedder.backbone.architecture()
    return pack(
        "embedder", arrays, spec=asdict(embedder.spec), architecture=json.loads(json.dumps(architecture))
    )


def embedder_from_bytes(data: bytes) -> Embedder:
    """Return the inverse of `embedder_to_bytes`, on the CPU in evaluation mode; BadArtifact for other bytes."""
    _, arrays, meta = unpack(data, ("embedder",))
    try:
        embedder = build_embedder(EmbedderSpec(**meta["spec"]), 0, meta["architecture"])
        embedder.load_state_dict({k: torch.from_numpy(a.copy()) for k, a in arrays.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise BadArtifact(f"an embedder that this release cannot rebuild: {error}") from error
    return embedder.eval()


def as_images(pixels: NDArray[np.uint8] | Tensor, device: str | torch.device = "cpu") -> Tensor:
    """Return uint8 pixels [B,H,W,3] -> float images [B,3,H,W] in 0..1, channels-last in memory (faster on CPUs too)."""
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}, expected uint8 [B, H, W, 3]")
    return pixels.to(device).permute(0, 3, 1, 2).float() / 255


def embed(
    embedder: Embedder, pixels_NHW3: NDArray[np.uint8], device: str | torch.device = "cpu", batch: int = 256
) -> NDArray[np.float32]:
    """Return raw embeddings [N, d] of uint8 pixels [N,H,W,3] (a memory map: read by batches), in evaluation mode."""
    if batch < 1:
        raise ValueError(f"batch {batch}, expected at least 1")
    was_training = embedder.training
    embedder.eval().to(device)
    g_Nd = np.empty((len(pixels_NHW3), embedder.out_dim), np.float32)
    try:
        with torch.inference_mode():
            for i in range(0, len(pixels_NHW3), batch):
                images = as_images(np.array(pixels_NHW3[i : i + batch]), device)
                g_Nd[i : i + batch] = embedder(images).cpu().numpy()
    finally:
        embedder.train(was_training)
    return g_Nd
