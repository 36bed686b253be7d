"""Seam 32: whoever reserves a GPU embeds on it: an indexer what lands, rank 0 and every other rank what is measured.

No machine of these tests has a GPU, so the device is one that torch only pretends to compute on (`meta`), and what is
embedded there has to be told apart from what is embedded on the CPU.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from stream_odml.cluster.indexer import Indexer, indexing_device, threads_of
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import Embedder, build_embedder
from stream_odml.pipeline import held_out, indexing
from stream_odml.pipeline.held_out import embed_images
from stream_odml.store.pictures import as_parquet
from tests.service.tiny_stream import SPEC, TinyStream, picture

META = torch.device("meta")


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The device of every batch that is embedded, in order."""
    seen: list[str] = []

    def embed(model: Embedder, pixels: NDArray[np.uint8], device: Any = "cpu") -> NDArray[np.float32]:
        seen.append(str(torch.device(device)))
        return np.ones((len(pixels), model.spec.dim), np.float32)

    monkeypatch.setattr(indexing, "embed", embed)
    monkeypatch.setattr(held_out, "embed", embed)
    return seen


def config_of(stream: TinyStream, **cluster: float) -> StreamConfig:
    return parse_config(
        {
            "root": stream.root,
            "method": "distilled",
            "model": {"dim": SPEC.dim, "image_size": 16},
            "cluster": cluster,
        }
    )


@pytest.mark.parametrize(
    ("omp", "expected"), [("", 1), ("0", 1), ("3", 3), (" 2 ", 2), ("4,2", 4), ("all", 1), ("x2", 1)]
)
def test_an_indexer_starts_with_any_number_of_openmp_threads(omp: str, expected: int) -> None:
    """One that fails here fails at every start, and nothing that lands is ever found."""
    assert threads_of(omp) == expected


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, "cpu"), (0.5, "meta"), (1.0, "meta")])
def test_an_indexer_embeds_on_what_was_reserved_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: list[str], gpus: float, expected: str
) -> None:
    monkeypatch.setattr("stream_odml.cluster.indexer.lower_priority", lambda niceness: None)
    monkeypatch.setattr("stream_odml.cluster.indexer.observe", lambda config, role: None)
    monkeypatch.setattr("stream_odml.cluster.indexer.found_accelerator", lambda: META)
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", "dog"])
    devices.clear()
    (ref,) = DirectorySource(stream.inbox).poll(set())
    Indexer(config_of(stream, gpus_per_indexer=gpus).model_dump_json()).index([ref], stream.head)
    stream.close()
    assert devices == [expected]


def test_a_reserved_gpu_that_torch_does_not_find_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    with caplog.at_level(logging.ERROR):
        assert indexing_device(0.5) == torch.device("cpu")
    assert "gpus_per_indexer is 0.5" in caplog.text
    caplog.clear()
    assert indexing_device(0.0) == torch.device("cpu")
    assert not caplog.text


def test_held_out_images_are_embedded_on_the_device_of_the_rank(tmp_path: Path, devices: list[str]) -> None:
    stream = TinyStream(tmp_path)
    held = as_parquet(
        pa.table({"item_id": ["s/0", "s/1"], "class_name": ["a", "b"], "image": [picture(0), picture(1)]})
    )
    stream.writer.store.files.write("holdout/s.parquet", held)
    models = (build_embedder(SPEC, 0), build_embedder(SPEC, 1))
    there, vectors = embed_images(
        stream.writer.store, [("s", "s/0"), ("s", "s/1")], models, 16, 1 << 20, META
    )
    stream.close()
    assert there.all()
    assert [len(part) for part in vectors] == [2, 2]
    assert devices == ["meta", "meta"]


def test_the_real_embedding_takes_the_device_too() -> None:
    """The oracle of the others: on `meta` there is no data, so that nothing can come back from there unnoticed."""
    from stream_odml.learn.embedder import embed

    with pytest.raises(NotImplementedError, match="meta"):
        embed(build_embedder(SPEC, 0), np.zeros((1, 16, 16, 3), np.uint8), META)
