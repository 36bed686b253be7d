"""What is taken out can be used without us: it ranks as the stream does, and the ONNX model gives the same vectors."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from stream_odml.exchange import exporting
from stream_odml.exchange.adopting import adopt
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.exporting import export
from stream_odml.exchange.places import open_source, open_target
from stream_odml.exchange.rows import Gallery
from stream_odml.exchange.source import Names
from stream_odml.exchange.syncing import sync
from stream_odml.ingest.landing import land_file
from stream_odml.learn import head_choice
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings
from stream_odml.pipeline import head_solving
from stream_odml.storage.atomic import ASIDE
from tests.service.tiny_stream import TinyStream
from tests.service.vector_stream import D, VectorStream, vector_config, vectors_of


def by_one_part(sums: ClassSums, *_: Any, **__: Any) -> HeadSettings:
    """A choice by which the known part compares items of every class."""
    return HeadSettings(dim=12, width=sums.lift.width, knows_all=True, bonus_among_all=0.05)


NAMES = [f"tree {i}" for i in range(5) for _ in range(8)]


@pytest.fixture(scope="module", params=["whole", "known", "full", "shared"])
def taken_out(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Gallery, Path]:
    """Of a stream of vectors of few items, all of which are compared by whitening; of one whose head knows all classes,
    as of many items; and of two with items of a class that the head does not know, compared by another part or by the
    same."""
    folder = tmp_path_factory.mktemp(request.param)
    stream = VectorStream(folder / "root")
    stream.land("trees", NAMES)
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "whole":
            patch.setattr(head_choice, "MAX_WHITENED", 0)
        if request.param == "shared":
            patch.setattr(head_solving, "choose_head", by_one_part)
        stream.learn()
    if request.param in ("full", "shared"):
        stream.land("birds", ["bird"] * 4)
    stream.close()
    report = export(stream.config.root, str(folder / "out"), formats=["parquet", "faiss", "npz", "model"])
    gallery = Gallery.load(stream.config.root)
    assert (report.items, report.dim, gallery.layout) == (len(gallery), gallery.dim, request.param)
    assert {path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.*")} == set(
        report.files
    )
    return gallery, folder / "out"


def test_every_file_ranks_as_a_search_of_the_stream_does(taken_out: tuple[Gallery, Path]) -> None:
    gallery, folder = taken_out
    features = vectors_of(["tree 2", "bird"], 77)
    queries = gallery.queries(features)
    hits = gallery.snapshot.search(gallery.snapshot.space.embeddings(features), gallery.version, 6)
    expected = [[hit.item_id for hit in found] for found in hits]
    scores, rows = faiss.read_index(str(folder / "items.faiss")).search(queries, 6)
    ids = pq.read_table(folder / "items.ids.parquet")["id"].to_pylist()
    assert [[ids[row] for row in found] for found in rows] == expected
    assert np.allclose(scores, [[hit.score for hit in found] for found in hits], atol=1e-5)
    table = pq.read_table(folder / "items.parquet")
    archive = np.load(folder / "items.npz")
    assert np.array_equal(np.stack(table["vector"].to_pylist()), archive["vector"])
    assert table["id"].to_pylist() == archive["id"].tolist() == gallery.ids
    assert table["class_name"].to_pylist() == archive["class_name"].tolist()
    assert set(table["version"].to_pylist()) == {gallery.version}
    best = np.argsort(-(archive["vector"] @ queries.T), axis=0, kind="stable")[:6].T
    assert [[gallery.ids[row] for row in found] for found in best] == expected


def test_the_model_is_there_with_a_card(taken_out: tuple[Gallery, Path]) -> None:
    gallery, folder = taken_out
    head = DiscriminantHead.from_bytes((folder / "model" / "head.safetensors").read_bytes())
    assert gallery.head is not None
    assert head.equals(gallery.head)
    card = (folder / "model" / "README.md").read_text()
    assert gallery.version in card
    assert f"vectors of {gallery.dim} values" in card


def test_onnx_gives_the_vectors_of_the_model(taken_out: tuple[Gallery, Path], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    gallery, _ = taken_out
    export(str(gallery.store.uri), str(tmp_path), formats=["onnx"])
    session = runtime.InferenceSession(
        str(tmp_path / "model" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    features = vectors_of(["tree 1", "bird", "tree 4"], 5) * np.array([[1.0], [30.0], [0.01]], np.float32)
    (found,) = session.run(["embedding"], {"input": features})
    assert np.abs(found - gallery.queries(features)).max() < 1e-4


@pytest.mark.slow
def test_onnx_of_a_network_for_images(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    stream = TinyStream(tmp_path)
    ids = stream.land("a", ["cat", "dog"])
    stream.close()
    export(stream.root, str(tmp_path / "out"), formats=["onnx", "parquet"])
    session = runtime.InferenceSession(
        str(tmp_path / "out" / "model" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    from stream_odml.ingest.decode import decode_image

    pixels = np.stack([decode_image(stream.images[one], 16, 1 << 20) for one in ids])
    (found,) = session.run(["embedding"], {"input": pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255})
    rows = {row["id"]: row["vector"] for row in pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()}
    assert np.abs(found - np.stack([rows[one] for one in ids])).max() < 1e-4


def test_a_format_that_is_none_is_refused_before_anything_is_written(
    taken_out: tuple[Gallery, Path], tmp_path: Path
) -> None:
    gallery, _ = taken_out
    with pytest.raises(ExchangeError, match=r"no format 'csv'; name some of parquet"):
        export(str(gallery.store.uri), str(tmp_path / "x"), formats=["csv"])
    assert not (tmp_path / "x").exists()


def test_files_of_another_tool_are_not_overwritten_and_an_export_is_by_the_next_one(
    taken_out: tuple[Gallery, Path], tmp_path: Path
) -> None:
    gallery, _ = taken_out
    (tmp_path / "items.npz").write_text("mine")
    with pytest.raises(ExchangeError, match=r"holds items.npz, which no export wrote; name an empty folder"):
        export(str(gallery.store.uri), str(tmp_path), formats=["parquet"])
    assert (tmp_path / "items.npz").read_text() == "mine"
    for _ in range(2):
        export(str(gallery.store.uri), str(tmp_path / "out"), formats=["parquet"])
        half_written = tmp_path / "out" / f"{ASIDE}0"  # by an export that was killed
        half_written.touch()
        os.utime(half_written, (0, 0))
    export(str(gallery.store.uri), str(tmp_path / "out"), formats=["parquet"])
    assert not half_written.exists()
    assert len(pq.read_table(tmp_path / "out" / "items.parquet")) == len(gallery)


def test_a_folder_holds_what_its_export_says_and_what_is_not_ours(tmp_path: Path) -> None:
    stream = VectorStream(tmp_path / "root")
    stream.land("trees", NAMES)
    stream.learn()
    stream.close()
    out = tmp_path / "out"

    def ours() -> set[str]:
        return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - kept

    kept: set[str] = set()
    export(stream.config.root, str(out), formats=["parquet", "faiss", "npz", "model"])
    for name in ("model/notes.txt", "items.csv"):
        (out / name).write_text("mine")
    kept = {"model/notes.txt", "items.csv"}
    report = export(stream.config.root, str(out), formats=["parquet"])
    assert ours() == set(report.files) == {"export.json", "items.parquet"}
    assert json.loads((out / "export.json").read_text())["files"] == ["items.parquet"]
    assert all((out / name).read_text() == "mine" for name in kept)
    (out / "items.npz").write_text("mine")
    with pytest.raises(ExchangeError, match=r"items\.npz, which no export wrote"):
        export(stream.config.root, str(out), formats=["npz"])
    assert (out / "items.npz").read_text() == "mine"


def test_an_export_that_is_ended_names_no_file_and_the_next_one_clears_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = VectorStream(tmp_path / "root")
    stream.land("trees", NAMES)
    stream.learn()
    stream.close()
    out = tmp_path / "out"
    export(stream.config.root, str(out), formats=["npz"])

    def ended(gallery: Gallery, folder: Path) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(exporting._WRITERS, "faiss", ended)
        with pytest.raises(KeyboardInterrupt):
            export(stream.config.root, str(out), formats=["parquet", "faiss"])
    assert json.loads((out / "export.json").read_text())["files"] == []
    assert (out / "items.parquet").exists()
    export(stream.config.root, str(out), formats=["faiss"])
    assert {path.name for path in out.iterdir()} == {"export.json", "items.faiss", "items.ids.parquet"}


def test_where_one_part_compares_all_a_class_that_lands_leaves_rows_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_choice, "MAX_WHITENED", 0)
    monkeypatch.setattr(head_solving, "choose_head", by_one_part)
    stream = VectorStream(tmp_path / "root")
    stream.land("trees", NAMES)
    stream.learn()
    before = Gallery.load(stream.config.root)
    stream.land("birds", ["bird"] * 4)
    stream.close()
    after = Gallery.load(stream.config.root)
    assert len(after) == len(before) + 4
    assert (after.layout, after.dim, after.space) == (before.layout, before.dim, before.space)


def _served(folder: Path) -> tuple[VectorStream, Path]:
    """A stream whose vectors are as long as its features, so that no length tells them apart, and its export."""
    model = {"backbone": "none", "input_dim": D, "head": "discriminant", "dim": D, "lift": 16}
    stream = VectorStream(folder / "root", model=model)
    stream.land("trees", NAMES)
    stream.learn()
    export(stream.config.root, str(folder / "out"), formats=["parquet", "faiss", "npz"])
    with contextlib.closing(open_target(str(folder / "copy"))) as target:
        sync(stream.config.root, target)
    return stream, folder / "out"


def test_formats_may_stand_between_commas(tmp_path: Path) -> None:
    stream, _ = _served(tmp_path)
    stream.close()
    found = export(stream.config.root, str(tmp_path / "some"), formats="parquet, npz")
    assert {Path(file).name for file in found.files} >= {"items.parquet", "items.npz"}
    assert not (tmp_path / "some" / "items.faiss").exists()


def test_a_stream_takes_no_vectors_that_a_stream_gave_out(tmp_path: Path) -> None:
    """By no file that `export` or `sync` writes, whether it is landed or copied into the inbox."""
    stream, out = _served(tmp_path)
    before = pq.read_table(out / "items.parquet")
    bucket = next((tmp_path / "copy").glob("space-*/bucket-*.parquet"))
    pa.feather.write_feather(before, out / "items.arrow", compression="uncompressed")
    for number, file in enumerate((out / "items.parquet", out / "items.npz", out / "items.arrow", bucket)):
        with pytest.raises(
            ValueError, match=r"these are vectors of .*land the features .*\(served_vectors\)"
        ):
            land_file(stream.inboxes[0], file)
        shutil.copy(file, stream.inboxes[0] / f"again-{number}{file.suffix}")
        assert stream.ingest() == ["served_vectors"], file
    stream.close()
    export(stream.config.root, str(out), formats=["parquet"])
    assert pq.read_table(out / "items.parquet").equals(before)


def test_what_a_stream_gave_out_begins_a_new_stream_and_is_added_to_none(tmp_path: Path) -> None:
    stream, out = _served(tmp_path)
    stream.close()
    new = vector_config(tmp_path / "new", model=asdict(stream.config.model))
    places = [out / "items.parquet", out / "items.npz", tmp_path / "copy", out / "items.faiss", out]
    for place in places:  # the index finds its ids beside it
        source = open_source(str(place), Names())
        with pytest.raises(
            ExchangeError, match=r"vectors of .* holds vectors of another space; name a new root"
        ):
            adopt(source, stream.config)
        if place.parent == out:
            assert source.origin == (stream.writer.store.stream_id, Gallery.load(stream.config.root).version)
            # The first begins it, the same goes on, and others of one space may follow.
            adopt(source, new)
    assert len(Gallery.load(new.root)) == len(NAMES)
