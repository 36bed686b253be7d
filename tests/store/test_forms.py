"""Both forms of a root: what is stored comes back, in embedding form as it was, in exact form as its codes say."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from stream_odml.learn.feature_codes import FeatureFormat, encode
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.backup import back_up
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.tables import SCHEMAS, decoded, features_of, gallery_rows, restamped
from stream_odml.store.writer import IngestBatch, Writer
from tests.store.world import DIM, Item, Shard, commit_stage, ingest, make_rows, new_root

DATA = Path(__file__).parent / "data"
NOW = MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(0))
ITEMS = [Item("a", "rock"), Item("b", "tree"), Item("c", "rock")]


def vectors_in(snapshot: GallerySnapshot) -> dict[str, list[float]]:
    rows = {snapshot.item(int(row)).item_id: int(row) for row in snapshot.rows()}
    return {name: snapshot.vectors(np.array([row]))[0].tolist() for name, row in rows.items()}


def test_a_root_of_version_1_opens_and_goes_on(tmp_path: Path) -> None:
    root = str(shutil.copytree(DATA / "root_v1", tmp_path / "root"))
    said = json.loads((DATA / "root_v1.json").read_text())
    store = Store.create(root, DIM)
    assert (store.form, store.row_codes, store.dim, store.tree.head) == ("embedding", None, DIM, said["head"])
    before = vectors_in(GallerySnapshot.load(store))
    assert before.keys() == said["vectors"].keys()
    for name, vector in before.items():
        np.testing.assert_allclose(vector, said["vectors"][name], atol=1e-6)

    writer = Writer.claim(root, "next")
    ingest(writer, "s3", [Item("late", "rock")], seed=5)
    assert (
        writer.maintain(NOW).rows_purged == 3
    )  # of the erased class, and of the item that came again (by two versions)
    writer.close_task("task-0002", ["s2", "s3"], "test")
    commit_stage(writer, "task-0002", None, seed=2)
    writer.release()
    assert back_up(root, str(tmp_path / "copy")).head == writer.tree.head
    for again in (Store.open(root), Store.open(str(tmp_path / "copy"))):
        assert sorted(vectors_in(GallerySnapshot.load(again))) == ["a", "b", "c", "late"]
        assert again.gallery_rows().schema == again.gallery_schema
    # A release of before reads it still.
    stated = json.loads(DeltaTable(f"{root}/gallery").metadata().description or "")
    assert stated == {"schema_version": 1, "dim": DIM}


@pytest.mark.parametrize("codes", ["int8", "float16"])
def test_features_come_back_as_coded(tmp_path: Path, codes: FeatureFormat) -> None:
    root = str(tmp_path / "root")
    store = Store.create(root, DIM, form="exact", codes=codes)
    assert (store.form, store.row_codes, store.dim) == ("exact", codes, DIM)
    writer = Writer.claim(root, "test")
    writer.commit_root({"student.safetensors": b"initial"})
    h = ingest(writer, "s1", ITEMS, seed=1).astype(np.float32)
    coded = encode(h, codes)
    reader = Store.open(root)
    [path] = reader.blocks
    np.testing.assert_array_equal(reader.features(path).codes_nD, coded.codes_nD)
    np.testing.assert_array_equal(reader.features(path).scale_n, coded.scale_n)
    np.testing.assert_array_equal(reader.vectors(path), coded.decode())
    rows = reader.gallery_rows()
    np.testing.assert_array_equal(decoded(rows, DIM), coded.decode())
    picked = features_of(rows.slice(1, 2), DIM)
    np.testing.assert_array_equal(picked.codes_nD, coded.codes_nD[1:])

    again = restamped(rows.select(reader.metadata().column_names), coded.decode(), "v9", codes)
    np.testing.assert_array_equal(features_of(again, DIM).codes_nD, coded.codes_nD)
    stated = json.loads(DeltaTable(f"{root}/ledger").metadata().description or "")
    assert stated == {"schema_version": 2, "dim": DIM, "form": "exact", "codes": codes}
    actions = DeltaTable(f"{root}/gallery").get_add_actions(flatten=True)
    assert not [name for name in actions.schema.names if "codes" in name and name.startswith(("min", "max"))]
    writer.release()


def test_a_form_is_fixed(tmp_path: Path) -> None:
    exact, plain = str(tmp_path / "exact"), str(tmp_path / "plain")
    Store.create(exact, DIM, form="exact")
    Store.create(plain, DIM)
    for uri, others in {
        exact: [{}, {"form": "exact", "codes": "float16"}],
        plain: [{"form": "exact"}],
    }.items():
        for other in others:
            with pytest.raises(
                ValueError, match=r"holds (features|embeddings).*asked for .*another stream root"
            ):
                Store.create(uri, DIM, **other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dimension 6, asked for features, int8, of dimension 7"):
        Store.create(exact, DIM + 1, form="exact")
    with pytest.raises(ValueError, match=r"form 'exakt'.*embedding, exact"):
        Store.create(str(tmp_path / "new"), DIM, form="exakt")  # type: ignore[arg-type]
    assert Store.create(plain, DIM, codes="float16").row_codes is None  # codes are of the exact form
    Store.create(exact, DIM, form="exact")
    with pytest.raises(ValueError, match="stores embeddings"):
        Store.open(plain).features("x")


def test_an_unknown_form_is_reported(tmp_path: Path) -> None:
    for name, schema in SCHEMAS.items():
        stated = {"schema_version": 2, "dim": DIM, "form": "sparse", "codes": "int8"}
        DeltaTable.create(str(tmp_path / name), schema=schema, description=json.dumps(stated))
    with pytest.raises(NotAStreamRoot, match=r"form 'sparse'.*restore"):
        Store.open(str(tmp_path))


def test_rows_must_be_of_the_root_s_form(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path / "root"), form="exact")
    writer.record_landed([Shard("s1")])
    h, head = np.ones((3, DIM)), writer.tree.head

    def commit(**more: FeatureFormat) -> None:
        writer.commit_ingest(IngestBatch(["s1"], make_rows("s1", ITEMS, h, head, **more)))

    with pytest.raises(ValueError, match=r"rows with vector for a root in exact form.*row_codes"):
        commit()
    with pytest.raises(ValueError, match="float16 for a root of int8"):
        commit(codes="float16")
    h = np.ones((3, DIM + 1))
    with pytest.raises(ValueError, match=f"expected {DIM} or {2 * DIM}"):
        commit(codes="int8")
    h = np.full((3, DIM), np.nan)
    with pytest.raises(ValueError, match="not finite"):
        commit(codes="int8")
    h = np.zeros((3, DIM))
    commit(codes="int8")
    assert len(writer.store.gallery_rows()) == 3
    writer.release()


def test_codes_fill_several_arrow_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_odml.store.code_column.CHUNK_BYTES", 3 * DIM)
    h = np.random.default_rng(0).normal(size=(10, DIM)).astype(np.float32)
    rows = gallery_rows(
        item_ids=[str(i) for i in range(10)],
        class_names=["c"] * 10,
        shard_ids="s",
        rows=range(10),
        vectors=h,
        version="v",
        codes="int8",
    )
    assert rows["codes"].num_chunks == 4
    np.testing.assert_array_equal(decoded(rows, DIM), encode(h).decode())
    assert decoded(rows.slice(0, 0), DIM).shape == (0, DIM)
