"""A gallery of another store is taken over: whole, once, and as a stream that had seen it all would hold it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from stream_odml.config.stream import ConfigError
from stream_odml.exchange import source as blocks
from stream_odml.exchange.adopting import Report, adopt
from stream_odml.exchange.errors import ExchangeError, SourceLost
from stream_odml.exchange.files_source import TableSource
from stream_odml.exchange.places import open_source
from stream_odml.exchange.source import Names, as_lists
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.feature_codes import encode
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.pipeline.first_version import MATRICES_AT_ONCE, open_root
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums
from tests.killed import is_killed
from tests.service.vector_stream import D, VectorStream, vector_config, vectors_of

LABELS = [f"sku {i % 9}" for i in range(700)]
VECTORS = vectors_of(LABELS, 4)
IDS = [f"p-{i}" for i in range(700)]
WITHOUT_LENGTH = {"backbone": "none", "head": "discriminant"}
HERE = Names(class_name="sku", attributes=("colour",))


def table(**more: Any) -> pa.Table:
    columns = {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.reshape(-1)), D),
        "id": IDS,
        "sku": LABELS,
        "colour": ["red", None] * 350,
        **more,
    }
    return pa.table(columns)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_odml.exchange.files_source.rows_at_once", lambda dim: 128)


def take(place: Path, root: Path, names: Names = HERE, ids: Path | None = None, **more: Any) -> Report:
    config = vector_config(root, model={"backbone": "none", "head": "discriminant", "dim": 12, "lift": 16})
    return adopt(open_source(str(place), names, ids), config, **more)


def check_all_there(root: Path, labels: list[str] = LABELS) -> None:
    """Items, classes, sums and search are those of the vectors as they were given."""
    store = Store.open(str(root))
    rows = store.gallery_rows(vectors=False).to_pylist()
    assert {row["item_id"]: row["class_name"] for row in rows} == dict(zip(IDS, labels, strict=True))
    assert len(rows) == 700
    sums = store.sums_of(store.tree.head)
    assert sums is not None
    known = [at for at, label in enumerate(labels) if label]
    assert sums.equals(ClassSums.of(sums.lift, encode(VECTORS[known]), [labels[at] for at in known]))
    snapshot = GallerySnapshot.load(store)
    z = store.head_of(store.tree.head).embed(encode(VECTORS[[3, 650]]).decode())
    found = snapshot.search(z, snapshot.version, 1)
    assert [hit[0].item_id for hit in found] == ["p-3", "p-650"]


def write_parquet(folder: Path) -> Path:
    pq.write_table(table(), folder / "items.parquet", row_group_size=150)
    return folder / "items.parquet"


def write_folder(folder: Path) -> Path:
    (folder / "parts").mkdir()
    for at in (0, 300):
        pq.write_table(table().slice(at, 300 if not at else 400), folder / "parts" / f"{at}.parquet")
    return folder / "parts"


def write_feather(folder: Path) -> Path:
    pyarrow.feather.write_feather(table(), folder / "items.feather", chunksize=99)
    return folder / "items.feather"


def write_npz(folder: Path) -> Path:
    np.savez(
        folder / "items.npz",
        vector=VECTORS,
        id=np.array(IDS),
        sku=np.array(LABELS),
        colour=np.array(["red"] * 700),
    )
    return folder / "items.npz"


WRITERS: list[Callable[[Path], Path]] = [write_parquet, write_folder, write_feather, write_npz]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_files_are_taken_over_learnt_and_never_twice(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    place, root = write(tmp_path), tmp_path / "root"
    seen: list[int] = []
    report = take(place, root, progress=lambda done, total: seen.append(done))
    assert (report.items, report.classes, report.dim, report.quarantined) == (700, 9, D, {})
    assert seen[0] == 0
    assert seen[-1] == 700
    assert len(seen) >= 6
    check_all_there(root)
    again = take(place, root)
    assert (again.items, again.before, again.version) == (0, 700, "")
    check_all_there(root)
    for file in [place, *place.rglob("*")] if place.is_dir() else [place]:
        os.utime(file, (1, 1))
    copied = tmp_path / "copied" / place.name
    (shutil.copytree if place.is_dir() else shutil.copy)(place, _made(copied.parent) / place.name)
    for same in (place, copied):
        again = take(same, root)
        assert (again.items, again.before) == (0, 700), "it is what it holds, not where or since when"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", ["Flat", "IVF4,Flat", "IDMap,Flat"])
@pytest.mark.parametrize("ids", ["txt", "parquet"])
def test_a_faiss_index_with_a_file_of_ids(tmp_path: Path, kind: str, ids: str) -> None:
    index = faiss.index_factory(D, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    index.add_with_ids(VECTORS, np.arange(700)) if kind.startswith("IDMap") else index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "items.faiss"))
    file = tmp_path / f"ids.{ids}"
    if ids == "txt":
        file.write_text("\n".join(IDS))
    else:
        pq.write_table(table().drop_columns(["vector"]), file)
    names = Names() if ids == "txt" else HERE
    report = take(tmp_path / "items.faiss", tmp_path / "root", names, file)
    assert report.items == 700
    if ids == "txt":
        assert (report.unlabelled, report.version) == (700, "")
    else:
        check_all_there(tmp_path / "root")


def test_an_erasure_names_the_store_that_was_adopted(tmp_path: Path) -> None:
    place = write_parquet(tmp_path)
    take(place, tmp_path / "root")
    stream = VectorStream(tmp_path / "root")
    stream.writer.forget("item", "p-5", 1)
    forget_in_sums(stream.writer)
    stream.writer.maintain(MaintenancePolicy(retention=timedelta(0)))
    stream.close()
    proof = verify_forgotten(str(tmp_path / "root"), "item", "p-5")
    assert (proof.findings, proof.inbox) == ([], [])
    assert proof.elsewhere == [str(place)]


def test_what_has_no_class_is_searchable_and_in_no_sums(tmp_path: Path) -> None:
    labels = [label if at % 3 else "" for at, label in enumerate(LABELS)]
    pq.write_table(table(sku=[label or None for label in labels]), tmp_path / "items.parquet")
    report = take(tmp_path / "items.parquet", tmp_path / "root")
    assert (report.unlabelled, report.classes) == (234, 6)
    store = Store.open(str(tmp_path / "root"))
    sums = store.sums_of(store.tree.head)
    assert sums is not None
    assert sums.n_items == 466
    rows = store.gallery_rows(vectors=False)
    assert rows["class_name"].to_pylist() == labels
    assert rows["attributes"].to_pylist()[:2] == ['{"colour": "red"}', "{}"]


def test_a_stream_goes_on_behind_what_was_adopted(tmp_path: Path) -> None:
    take(write_parquet(tmp_path), tmp_path / "root")
    stream = VectorStream(tmp_path / "root")
    birds = [f"bird {i}" for i in range(3) for _ in range(10)]
    new = stream.land("birds", birds)
    version = stream.learn()
    stream.close()
    sums = Store.open(str(tmp_path / "root")).sums_of(version)
    assert sums is not None
    assert sums.equals(ClassSums.of(sums.lift, encode(np.concatenate([VECTORS, new])), LABELS + birds))


def test_rows_that_cannot_be_used_are_quarantined_with_a_reason(tmp_path: Path) -> None:
    vectors: list[Any] = list(VECTORS.astype(np.float64))
    vectors[3], vectors[200], vectors[301], vectors[302] = (
        vectors[3][:7],
        vectors[200] * np.nan,
        vectors[301] * 0,
        None,
    )
    ids: list[Any] = list(IDS)
    ids[400], ids[401] = "p-1", "  "
    labels: list[Any] = list(LABELS)
    labels[500] = "x" * 500
    odd = pa.array(vectors, pa.list_(pa.float64()))
    pq.write_table(table(vector=odd, id=ids, sku=labels), tmp_path / "items.parquet")
    report = take(tmp_path / "items.parquet", tmp_path / "root")
    assert dict(report.quarantined) == {
        "wrong_dimension": 2, "bad_vector": 2, "duplicate_id": 1, "bad_id": 1, "bad_label": 1
    }  # fmt: skip
    assert report.items == 693
    rows = Store.open(str(tmp_path / "root")).quarantine_rows().to_pylist()
    assert {row["reason"] for row in rows} == set(report.quarantined)
    assert any("p-1 came before" in row["detail"] for row in rows)


BAD: list[tuple[Callable[[Path], Path], Names, str]] = [
    (
        write_parquet,
        Names(vector="embedding"),
        "no column 'embedding'; it has vector, id, sku, colour: name one of them with --vector",
    ),
    (write_parquet, Names(class_name="category"), "no column 'category'"),
    (
        write_parquet,
        Names(vector="sku"),
        "column 'sku' of .* is string; name a list of numbers with --vector",
    ),
    (lambda folder: folder / "none.parquet", Names(), "does not exist; name a Parquet"),
    (lambda folder: Path("ftp://host/x"), Names(), "ftp"),
]


@pytest.mark.parametrize(("write", "names", "says"), BAD, ids=[says[:20] for _, _, says in BAD])
def test_a_source_that_cannot_be_read_makes_nothing(
    tmp_path: Path, write: Callable[[Path], Path], names: Names, says: str
) -> None:
    with pytest.raises(ExchangeError, match=says) as error:
        take(write(tmp_path), tmp_path / "root", names)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "root").exists()


def test_another_dimension_or_head_makes_nothing(tmp_path: Path) -> None:
    take(write_parquet(tmp_path), tmp_path / "root")
    np.savez(tmp_path / "short.npz", vector=VECTORS[:, :7])
    with pytest.raises(ExchangeError, match=r"vectors of 7 values, .* stores 24; name the model"):
        take(tmp_path / "short.npz", tmp_path / "root", Names())
    with pytest.raises(ConfigError, match=r"model.head: linear cannot take vectors over"):
        adopt(
            open_source(str(tmp_path / "short.npz"), Names()),
            vector_config(tmp_path / "new", model={"head": "linear"}),
        )
    images = vector_config(tmp_path / "new", model={"head": "discriminant"})
    with pytest.raises(ConfigError, match=r"set learning.trunk: frozen"):
        adopt(open_source(str(tmp_path / "short.npz"), Names()), images)
    assert not (tmp_path / "new").exists()


def test_a_source_that_breaks_off_is_asked_again_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TableSource(write_parquet(tmp_path), HERE)
    whole, left = source.blocks, [2, 1, 0, 0, 0, 0]

    def broken(cursor: Any) -> Any:
        for number, block in enumerate(whole(cursor)):
            if left and number == left[0]:
                left.pop(0)
                raise SourceLost("the server closed the connection")
            yield block

    monkeypatch.setattr(source, "blocks", broken)
    monkeypatch.setattr("stream_odml.exchange.adopting.PAUSES_S", (0.0, 0.0))
    config = vector_config(
        tmp_path / "root", model={"backbone": "none", "head": "discriminant", "dim": 12, "lift": 16}
    )
    with pytest.raises(SourceLost, match=r"384 rows of .* are taken over, the same command goes on"):
        adopt(source, config)
    left.clear()
    assert adopt(source, config).before == 384
    check_all_there(tmp_path / "root")


POINTS = (
    "adopt.before:2",
    "adopt.after_gallery",
    "adopt.after_gallery:3",
    "adopt.after_ledger:2",
    "stage.before",
    "close.after",
)


def _take_in_small_blocks(place: Path, root: Path) -> None:
    with mock.patch("stream_odml.exchange.files_source.rows_at_once", return_value=128):
        take(place, root)


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_it_goes_on_and_takes_nothing_twice(tmp_path: Path, point: str) -> None:
    place = write_parquet(tmp_path)
    assert is_killed(_take_in_small_blocks, place, tmp_path / "root", point=point)
    monkey = Store.open(str(tmp_path / "root"))
    assert len(monkey.gallery_rows()) % 128 in (0, 700 % 128)
    (tmp_path / "root" / "lease.json").unlink(missing_ok=True)
    take(place, tmp_path / "root")
    check_all_there(tmp_path / "root")


def test_blocks_bound_their_bytes() -> None:
    assert blocks.rows_at_once(512) == 32_768
    assert blocks.rows_at_once(65_536) == 256


def test_vectors_with_one_dimension_too_many_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", vector=VECTORS[:, None])
    with pytest.raises(ExchangeError, match=r"has shape \[\d+, 1, \d+\]; save it as \[n, d\]"):
        open_source(str(tmp_path / "odd.npz"), Names())


def test_files_of_one_folder_that_differ_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    for name, ids in (("a", pa.int32()), ("b", pa.int64())):
        table = pa.table({"id": pa.array([1, 2], ids), "vector": as_lists(VECTORS[:2])})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(ExchangeError, match=r"column 'id' of .*b.parquet is int64, of .*a.parquet int32"):
        open_source(str(tmp_path), Names())


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_root_that_is_a_file_is_refused_in_plain_words(root: str, tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "v.parquet")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"cannot be made: .*/file is a file; choose another folder"):
        take(tmp_path / "v.parquet", tmp_path / root)
    with pytest.raises(ConfigError, match="choose another folder"):
        open_root(vector_config(tmp_path / root))
    assert (tmp_path / "file").read_text() == "x"


def test_vectors_that_memory_would_not_take_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(100_000, np.float32)), 100_000)
    pq.write_table(pa.table({"vector": long, "id": ["x"], "sku": ["y"]}), tmp_path / "long.parquet")
    names, root = Names(class_name="sku"), tmp_path / "root"
    with pytest.raises(
        ConfigError, match=r"vectors of 100,000 values cannot be taken, at most 65,536; .*PCA"
    ):
        adopt(open_source(str(tmp_path / "long.parquet"), names), vector_config(root, model=WITHOUT_LENGTH))
    pq.write_table(table(), tmp_path / "v.parquet")
    wanted = MATRICES_AT_ONCE * 8 * (D + 16) ** 2
    monkeypatch.setattr("stream_odml.pipeline.first_version.available_bytes", lambda: wanted - 1)
    with pytest.raises(
        ConfigError, match=r"vectors of 24 values and a lift of 16 needs about .*lower model.lift"
    ):
        take(tmp_path / "v.parquet", root)
    assert not root.exists()
    monkeypatch.setattr("stream_odml.pipeline.first_version.available_bytes", lambda: wanted)
    assert take(tmp_path / "v.parquet", root).items == 700
    # A root that is there has its sums already.
    monkeypatch.setattr("stream_odml.pipeline.first_version.available_bytes", lambda: 0)
    assert take(tmp_path / "v.parquet", root).before == 700
