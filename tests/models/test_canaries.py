"""Canaries: a model that reads images otherwise than it did is refused by whoever loads it, and what differs named."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stream_odml.cluster.ingestion import is_external_failure
from stream_odml.config.service import ServiceOptions
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.decode import Pixels, decode_image
from stream_odml.learn.embedder import Embedder, build_embedder, embedder_from_bytes, embedder_to_bytes
from stream_odml.learn.packing import BadArtifact
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.models import canaries, loading
from stream_odml.models.canaries import Canaries, as_the_stream_decodes, vectors_of
from stream_odml.models.diagnosis import diagnose
from stream_odml.models.loading import check, load_model
from stream_odml.models.mismatch import CanaryMismatch
from stream_odml.pipeline.first_version import open_root
from stream_odml.service.replica import Replica
from stream_odml.store.artifacts import CANARIES, STUDENT
from stream_odml.store.store import Store
from tests.service.tiny_stream import TinyStream

SPEC = EmbedderSpec("conv4", image_size=32, head="discriminant")


def bgr(image: bytes, size: int, max_pixels: int = 0) -> Pixels:
    return np.ascontiguousarray(decode_image(image, size, 1 << 26)[..., ::-1])


def bicubic(image: bytes, size: int) -> Pixels:
    opened = Image.open(io.BytesIO(image)).convert("RGB")
    side = min(opened.size)
    left, top = (opened.width - side) / 2, (opened.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.array(opened.resize((size, size), Image.Resampling.BICUBIC, box))


def without_normalisation(embedder: Embedder) -> Embedder:
    other = copy.deepcopy(embedder)
    other.mean, other.std = torch.zeros_like(other.mean), torch.ones_like(other.std)
    return other


def trained_on(embedder: Embedder) -> Embedder:
    other = copy.deepcopy(embedder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(
                1 + 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            )
    return other


def test_the_same_model_passes_in_any_batch_and_after_its_bytes() -> None:
    model = build_embedder(SPEC, 0)
    kept = Canaries.from_bytes(Canaries.of(model).to_bytes())
    again = embedder_from_bytes(embedder_to_bytes(model))
    assert check(kept, again, "the model") < 1e-4
    alone = np.concatenate([vectors_of(again, [image]) for image in kept.images])
    assert kept.deviation(alone) < 1e-4
    with pytest.raises(BadArtifact):
        Canaries.from_bytes(kept.to_bytes()[:-1])


@pytest.mark.parametrize(
    ("kind", "decode", "loaded"),
    [
        ("channels", bgr, copy.deepcopy),
        ("resize", bicubic, copy.deepcopy),
        ("normalisation", as_the_stream_decodes, without_normalisation),
        ("checkpoint", as_the_stream_decodes, trained_on),
    ],
)
def test_what_differs_is_named(
    kind: str, decode: Callable[[bytes, int], Pixels], loaded: Callable[[Embedder], Embedder]
) -> None:
    """Whichever side reads otherwise: this process, or the one whose vectors are stored."""
    model = build_embedder(SPEC, 0).eval()
    other = loaded(model)
    kept = Canaries.of(model)
    assert kept.deviation(vectors_of(other, kept.images, decode)) > canaries.TOLERANCE
    assert diagnose(kept, other, decode).kinds == (kind,)
    theirs = Canaries(kept.images, vectors_of(other, kept.images, decode))
    assert diagnose(theirs, model).kinds == (kind,)


def test_batch_norm_in_training_mode_is_named() -> None:
    model = build_embedder(EmbedderSpec("mobilenetv2", image_size=32, head="discriminant"), 0)
    images = Canaries.of(model).images
    theirs = copy.deepcopy(model).train()
    pixels = np.stack([as_the_stream_decodes(image, 32) for image in images])
    with torch.no_grad():
        vectors = theirs(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).numpy()
    assert diagnose(Canaries(images, vectors), model).kinds == ("mode",)


def test_two_differences_are_named() -> None:
    model = build_embedder(SPEC, 0).eval()
    images = Canaries.of(model).images
    theirs = Canaries(images, vectors_of(without_normalisation(model), images, bgr))
    found = diagnose(theirs, model)
    assert (set(found.kinds), found.fits) == ({"channels", "normalisation"}, True)


def test_drawn_pictures_are_the_same_everywhere_and_always_resized() -> None:
    first, second = (Canaries.of(build_embedder(SPEC, 0)).images for _ in range(2))
    assert first == second
    assert all(min(Image.open(io.BytesIO(image)).size) > SPEC.image_size for image in first)


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on this process reads every image as BGR."""
    monkeypatch.setattr(loading, "_refused", {})
    return lambda: monkeypatch.setattr(canaries, "decode_image", bgr)


def test_a_replica_serves_what_it_has_and_not_a_model_that_fails(
    tmp_path: Path, swapped: Callable[[], None]
) -> None:
    stream = TinyStream(tmp_path)
    first = stream.head
    stream.land("a", ["cat", "dog"])
    options = ServiceOptions(poll_s=60.0)
    follower, late = Replica(stream.root, options), Replica(stream.root, options)
    follower.start()
    second = stream.stage()
    student = stream.writer.store.artifact(second, STUDENT)
    stream.writer.replace_artifact(second, CANARIES, canaries.canaries_of(student), "canaries")
    swapped()
    assert not follower.puller.poll()
    assert follower.served().version == first
    assert "BGR" in (follower.puller.refusal or "")
    late.start()
    assert "BGR" in (late.ready() or "")
    stream.back_to(first)  # which has no canaries
    assert late.puller.poll()
    assert (late.ready(), late.puller.refusal) == (None, None)
    for replica in (follower, late):
        replica.close()
    stream.close()


def test_an_indexer_that_fails_a_canary_costs_no_shard() -> None:
    class Failed(Exception):
        cause = CanaryMismatch("the model of version v0001 ...")

    assert is_external_failure(Failed())


def configured(root: Path, **model: object) -> StreamConfig:
    named = {"backbone": "mobilenetv2", "image_size": 32, "head": "discriminant", **model}
    return parse_config({"root": str(root), "source": {"path": str(root / "in")}, "model": named})


def weights(path: Path, seed: int) -> str:
    save_file(
        build_embedder(EmbedderSpec("mobilenetv2", image_size=32, dim=8), seed).backbone.state_dict(), path
    )
    return str(path)


def test_a_start_checks_the_model_and_the_weights_that_the_configuration_names(
    tmp_path: Path, swapped: Callable[[], None]
) -> None:
    file = tmp_path / "weights.safetensors"
    config = configured(tmp_path / "root", weights=weights(file, 0))
    for _ in range(2):
        open_root(config)
    head = (store := Store.open(config.root)).tree.head
    assert len(Canaries.from_bytes(store.artifact(head, CANARIES)).images) == 8
    weights(file, 1)
    with pytest.raises(CanaryMismatch, match="another checkpoint"):
        open_root(config)
    file.unlink()
    open_root(config)
    swapped()
    with pytest.raises(CanaryMismatch, match="BGR"):
        open_root(config)


def test_a_root_of_an_earlier_release_gets_canaries_when_it_starts(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    stream.close()
    config = parse_config(
        {"root": stream.root, "source": {"path": str(tmp_path / "in")},
         "model": {"backbone": "conv4", "dim": 16, "image_size": 16, "head": "linear"}}
    )  # fmt: skip
    open_root(config)
    store = Store.open(stream.root)
    kept = Canaries.from_bytes(store.artifact(store.tree.head, CANARIES))
    assert kept.deviation(vectors_of(load_model(store, store.tree.head), kept.images)) < 1e-4
