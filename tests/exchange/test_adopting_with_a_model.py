"""Vectors of a source and the model that made them: it is version 0, and images that land later stand beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.config.stream import ConfigError, StreamConfig, load_config
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import Embedder, build_embedder, embed
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.models.loading import load_model
from stream_odml.models.mismatch import CanaryMismatch
from stream_odml.pipeline.first_version import open_root
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer

SPEC = EmbedderSpec("conv4", dim=8, image_size=32, head="discriminant")
SOME = [c for c, _ in zip(glyph_categories(0, images=6, size=32), range(6), strict=False)]
ADOPTED, LATER = SOME[:4], SOME[4:]


def vectors_of(model: Embedder, images: list[bytes]) -> np.ndarray:
    return embed(model, np.stack([decode_image(image, 32, 1 << 20) for image in images]))


def weights(folder: Path, seed: int) -> Path:
    file = folder / f"weights-{seed}.safetensors"
    tensors = build_embedder(SPEC, seed).backbone.state_dict()
    save_file({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, file)
    return file


def stream_file(folder: Path, seed: int) -> Path:
    file = folder / f"stream-{seed}.yaml"
    model = "backbone: conv4, dim: 8, image_size: 32, head: discriminant, lift: 16"
    file.write_text(
        f"root: {folder}/root\nmodel: {{{model}, weights: {weights(folder, seed)}}}\nlearning: {{trunk: frozen}}\n"
    )
    return file


@pytest.fixture
def adopted(tmp_path: Path) -> StreamConfig:
    """24 vectors of the model with seed 5, taken over by the command."""
    file = stream_file(tmp_path, 5)
    model = build_embedder(load_config(file).model, 0).eval()
    images = [image for c in ADOPTED for image in c.images]
    names = np.array([c.class_name for c in ADOPTED for _ in c.images])
    ids = np.array([f"v-{n}" for n in range(len(images))])
    np.savez(tmp_path / "made.npz", vector=vectors_of(model, images), id=ids, label=names)
    command = ["adopt", str(tmp_path / "made.npz"), "--root", str(tmp_path / "root"), "--model", str(file)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return load_config(file)


def test_images_find_vectors_that_were_taken_over_and_those_find_images(
    adopted: StreamConfig, tmp_path: Path
) -> None:
    writer = Writer.claim(adopted.root, "test")
    store = writer.store
    model = load_model(store, store.tree.root or "")
    land_items(tmp_path / "inbox", "later", [NewItem(i, c.class_name) for c in LATER for i in c.images])
    (ref,) = DirectorySource(tmp_path / "inbox").poll(set())
    writer.record_landed([ref])
    options = IndexOptions(1 << 20, False, 0.0, codes="int8")
    writer.commit_ingest(index_shard(ref, model, store.tree.head, store.files, options))
    writer.release()
    snapshot = GallerySnapshot.load(Store.open(adopted.root))
    assert len(snapshot) == 36
    asked = [ADOPTED[0].images[2], LATER[1].images[3]]
    queries = snapshot.space.embeddings(vectors_of(model, asked))
    hits = [best[0] for best in snapshot.search(queries, snapshot.version, k=1)]
    assert [hits[0].item_id, hits[1].class_name] == ["v-2", LATER[1].class_name]
    assert hits[0].score == pytest.approx(1, abs=0.01)


def test_another_checkpoint_or_architecture_does_not_go_on_with_the_vectors(
    adopted: StreamConfig, tmp_path: Path
) -> None:
    assert open_root(adopted).root == adopted.root
    with pytest.raises((CanaryMismatch, ConfigError), match="weights"):
        open_root(load_config(stream_file(tmp_path, 6)))
    other = load_config(stream_file(tmp_path, 5), {"model": {"backbone": "conv4", "image_size": 64}})
    with pytest.raises(ConfigError, match="image_size"):
        open_root(other)
