"""Embedders: every family of backbones, their weights, their bytes, their frozen norms."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from stream_odml.learn.backbone import frozen_norms, pool
from stream_odml.learn.backbones import Conv4
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import (
    as_images,
    build_embedder,
    embed,
    embedder_from_bytes,
    embedder_to_bytes,
)
from stream_odml.learn.mobilenetv2 import MobileNetV2, _ConvNorm, _SameConv2d
from stream_odml.learn.packing import BadArtifact
from stream_odml.learn.settings import EmbedderSpec, StageSettings
from stream_odml.learn.stage import StageLearner

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES = {**SMALL, "image_size": 32, "patch_size": 16}
TOKENS = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": (
        "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "vit": ("ViTConfig", PATCHES),
    "dinov2": ("Dinov2Config", TOKENS),
    "convnext": ("ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}),
    "swin": (
        "SwinConfig",
        {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "hidden_size": 16},
    ),
    "siglip": ("SiglipVisionConfig", PATCHES),
    "registers": ("Dinov2WithRegistersConfig", TOKENS),
}  # fmt: skip
"""Class and arguments of tiny models."""
PREFIX = {"vit": 1, "dinov2": 1, "registers": 1 + 4}
"""Tokens before the patches; the others have none."""


def save_tiny(name: str, folder: Path) -> None:
    """Save a tiny model with random weights, as its library does."""
    import transformers  # which takes longer to load than most tests here

    kind, arguments = CONFIGS[name]
    transformers.AutoModel.from_config(getattr(transformers, kind)(**arguments)).save_pretrained(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_patches_alone_are_averaged_and_only_a_class_token_is_taken_for_one(
    name: str, tmp_path: Path
) -> None:
    save_tiny(name, tmp_path)
    spec = EmbedderSpec(f"transformers:{tmp_path}", dim=16, head="none", pooling="mean")
    embedder, images = build_embedder(spec, 0).eval(), torch.rand(2, 3, 32, 32)
    features = embedder.backbone(images)
    prefix = PREFIX.get(name, 0)
    patches = features[:, prefix:].mean(1) if features.ndim == 3 else features.mean((2, 3))
    mean = tuple(torch.tensor(part).view(1, 3, 1, 1) for part in embedder.backbone.pixel_statistics)
    assert torch.allclose(embedder(images * mean[1] + mean[0]), patches, atol=1e-5)
    assert embedder.backbone.default_pooling == ("cls" if prefix else "mean")
    if not prefix:
        with pytest.raises(ValueError, match="needs a backbone with a class token"):
            build_embedder(replace(spec, pooling="cls"), 0)


@pytest.fixture(params=CONFIGS)
def named(request: pytest.FixtureRequest, tmp_path: Path) -> EmbedderSpec:
    """A tiny model of transformers, saved in a folder."""
    torch.manual_seed(3)
    save_tiny(request.param, tmp_path)
    return EmbedderSpec(backbone=f"transformers:{tmp_path}", pretrained=True, dim=6)


def test_a_named_backbone_is_built_saved_and_learns(named: EmbedderSpec, tmp_path: Path) -> None:
    embedder = build_embedder(named, 0)
    g = embed(embedder, PIXELS)
    assert g.shape == (5, 6)
    data = embedder_to_bytes(embedder)
    stage = StageLearner(
        StageSettings(base_steps=2), embedder, ClassBank.empty(6), n_classes=2, version_id="v1", seed=0
    )
    before = [p.detach().clone() for p in stage.networks.parameters()]
    for _ in range(2):
        stage.step(torch.from_numpy(PIXELS), torch.tensor([0, 0, 0, 1, 1]))
    moved = [not torch.equal(a, b) for a, b in zip(before, stage.networks.parameters(), strict=True)]
    assert sum(moved) > 0.7 * len(moved)
    for file in tmp_path.iterdir():
        file.unlink()
    assert embed(embedder_from_bytes(data), PIXELS) == pytest.approx(g, abs=1e-5)


def test_pretrained_weights_are_those_of_the_folder(named: EmbedderSpec) -> None:
    loaded = [build_embedder(named, seed).backbone.state_dict() for seed in (1, 2)]
    fresh = [build_embedder(replace(named, pretrained=False), seed).backbone.state_dict() for seed in (1, 2)]
    assert all(torch.equal(loaded[0][k], loaded[1][k]) for k in loaded[0])
    assert any(not torch.equal(fresh[0][k], fresh[1][k]) for k in fresh[0])


def test_the_folder_s_pixel_statistics_are_used(tmp_path: Path) -> None:
    save_tiny("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]}'
    )
    spec = EmbedderSpec(backbone=f"transformers:{tmp_path}", dim=6)
    embedder = embedder_from_bytes(embedder_to_bytes(build_embedder(spec, 0)))
    assert embedder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert embedder.std.flatten().tolist() == [1, 1, 2]


@pytest.mark.parametrize("side", [28, 32, 105])
def test_conv4_takes_drawings_of_every_size(side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    assert embed(build_embedder(EmbedderSpec(dim=7, image_size=side), 0), pixels).shape == (3, 7)


def test_a_seed_is_a_model_and_the_global_random_state_stays() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (build_embedder(EmbedderSpec(dim=4), seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(embed(first, PIXELS), embed(again, PIXELS))
    assert not np.allclose(embed(first, PIXELS), embed(other, PIXELS), atol=1e-3)


def test_bytes_keep_every_bit_and_batches_do_not_matter(tmp_path: Path) -> None:
    embedder = build_embedder(EmbedderSpec(dim=4), 0)
    data = embedder_to_bytes(embedder)
    again = embedder_from_bytes(data)
    assert embedder_to_bytes(again) == data
    assert np.array_equal(embed(embedder, PIXELS), embed(again, PIXELS))
    assert embed(embedder, PIXELS, batch=2) == pytest.approx(embed(embedder, PIXELS), abs=1e-5)
    assert embed(embedder, PIXELS[:0]).shape == (0, 4)
    with pytest.raises(BadArtifact, match="no readable artifact"):
        embedder_from_bytes(data[:-1])
    with pytest.raises(BadArtifact, match="expected embedder"):
        embedder_from_bytes(ClassBank.empty(4).to_bytes())


@pytest.mark.parametrize("stride", [1, 2])
def test_a_frozen_norm_folded_into_its_convolution_gives_the_same_values_and_gradients(stride: int) -> None:
    torch.manual_seed(0)
    layer = _ConvNorm(3, 4, 3, stride)
    conv, norm = layer[0], layer[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm(torch.randn(64, 4, 5, 5) * 3 + 1)  # statistics other than 0 and 1
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    layer.eval()
    images = torch.randn(2, 3, 9, 9, requires_grad=True)
    wanted = [images, *layer.parameters()]
    folded = torch.autograd.grad(layer(images).square().sum(), wanted)
    apart = torch.autograd.grad(norm(conv(images)).clamp(0, 6).square().sum(), wanted)
    for one, other in zip(folded, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_mobilenet_loads_weights_by_torchvision_s_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = MobileNetV2()
    weights = {
        k: v.half() for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")
    }
    assert {"features.0.0.weight", "features.1.conv.1.weight", "features.18.1.running_var"} <= set(weights)
    weights["classifier.1.weight"] = torch.zeros(1000, 1280)
    save_file(weights, tmp_path / "w.safetensors")
    spec = EmbedderSpec("mobilenetv2", dim=4, weights=str(tmp_path / "w.safetensors"))
    loaded = build_embedder(spec, 5).backbone.state_dict()
    assert all(torch.equal(loaded[k], weights[k].float()) for k in weights if k.startswith("features"))
    with pytest.raises(ValueError, match="lack 12 tensors of Conv4"):
        build_embedder(replace(spec, backbone="conv4"), 0)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        build_embedder(replace(spec, weights=str(tmp_path / "none")), 0)


@pytest.mark.parametrize("side", [6, 7])
def test_strided_convolutions_pad_like_tensorflow(side: int) -> None:
    conv = _SameConv2d(1, 1, 3, 2, bias=False)
    image = torch.arange(float(side * side)).view(1, 1, side, side)
    before = 0 if side % 2 == 0 else 1  # even sides are padded at the bottom and right only
    padded = F.pad(image, (before, 1, before, 1))
    assert torch.equal(conv(image), F.conv2d(padded, conv.weight, stride=2))


def test_conv4_pools_before_relu_to_the_same_bits() -> None:
    conv4 = Conv4()
    images = torch.rand(4, 3, 28, 28, requires_grad=True)
    maps, features = images, conv4.features
    for i in range(0, len(features), 4):
        maps = features[i + 2](F.relu(features[i + 1](features[i](maps))))
    ours = conv4(images)
    assert torch.equal(ours, maps)
    grads = [torch.autograd.grad(out.square().sum(), [images, *conv4.parameters()]) for out in (ours, maps)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_frozen_norms_survive_train() -> None:
    embedder = build_embedder(EmbedderSpec("mobilenetv2", dim=4), 0)
    embedder.norms_frozen = True
    embedder.train()
    assert embedder.backbone.training
    norms = frozen_norms(embedder)
    assert len(norms) == 52
    before = [
        m.running_mean.clone() for m in norms if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None
    ]
    embedder(as_images(PIXELS))
    after = [m.running_mean for m in norms if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    assert not any(m.training for m in norms)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("base", "pretrained", "student", "peer"), [
    (True, False, False, None), (True, True, True, None), (False, False, True, False), (False, True, True, True),
])  # fmt: skip
def test_whose_norms_are_frozen(
    tmp_path: Path, base: bool, pretrained: bool, student: bool, peer: bool | None
) -> None:
    save_file(MobileNetV2().state_dict(), tmp_path / "w")
    spec = EmbedderSpec("mobilenetv2", dim=4, weights=str(tmp_path / "w") if pretrained else None)
    bank = ClassBank.empty(4)
    if not base:
        bank = bank.with_classes(["c"], "v0", np.array([1]), np.ones((1, 4)), np.ones((1, 4)))
    stage = StageLearner(StageSettings(), build_embedder(spec, 0), bank, n_classes=2, version_id="v1", seed=0)
    assert stage.networks.student.norms_frozen is student
    assert (None if stage.networks.peer is None else stage.networks.peer.norms_frozen) is peer
    assert not any(m.training for m in frozen_norms(stage.old))


def test_pooling_equals_the_loops() -> None:
    maps = torch.rand(2, 3, 2, 2)
    flat = maps.numpy().reshape(2, 3, 4)
    assert pool(maps, "mean", 1).numpy() == pytest.approx(flat.mean(2))
    assert pool(maps, "max", 1).numpy() == pytest.approx(flat.max(2))
    assert pool(maps, "gem", 1).numpy() == pytest.approx((flat**3).mean(2) ** (1 / 3), rel=1e-5)
    assert pool(maps, "flatten", 1).numpy() == pytest.approx(flat.reshape(2, 12))
    tokens = torch.rand(2, 5, 3)
    assert torch.equal(pool(tokens, "cls", 1), tokens[:, 0])
    assert torch.allclose(pool(tokens, "mean", 2), tokens[:, 2:].mean(1))
    with pytest.raises(ValueError, match="needs a backbone with a class token"):
        pool(maps, "cls", 1)


def test_a_model_without_head_names_its_features() -> None:
    with pytest.raises(ValueError, match="set dim: 256"):
        build_embedder(EmbedderSpec(head="none", dim=128), 0)
    assert embed(build_embedder(EmbedderSpec(head="none", dim=256), 0), PIXELS).shape == (5, 256)


def test_unknown_names_and_wrong_pixels_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'conv5'"):
        build_embedder(EmbedderSpec("conv5"), 0)
    with pytest.raises(ValueError, match="cannot be built"):
        build_embedder(EmbedderSpec("transformers:./no-such-folder"), 0)
    with pytest.raises(ValueError, match="expected uint8"):
        as_images(torch.zeros(2, 3, 8, 8))


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_timm_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"install stream-odml\[timm\]"):
        build_embedder(EmbedderSpec("timm:resnet18"), 0)
