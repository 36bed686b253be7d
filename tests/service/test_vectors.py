"""A stream of vectors, from every way in to its erasure: pushed, found, learnt, labelled, forgotten."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.client import Client
from stream_odml.config.service import ServiceOptions
from stream_odml.config.stream import ConfigError
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.pipeline.fast_stage import _lift_of
from stream_odml.pipeline.first_version import open_root
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums
from tests.service.local import LocalApi
from tests.service.vector_stream import D, VectorStream, vector_config, vectors_of

TREES = [f"tree {i}" for i in range(5) for _ in range(12)]
BIRDS = [f"bird {i}" for i in range(4) for _ in range(12)]


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[VectorStream]:
    stream = VectorStream(tmp_path / "root")
    yield stream
    stream.close()


@pytest.fixture
def api(stream: VectorStream) -> Iterator[LocalApi]:
    options = ServiceOptions()
    replica = Replica(stream.config.root, options)
    replica.start()
    with LocalApi(create_app(replica, options, replica.metrics)) as api:
        yield api
    replica.close()


def hits(api: LocalApi, vector: np.ndarray, stream: VectorStream, **more: object) -> list[dict[str, object]]:
    body = {"vector": vector.tolist(), "min_seq": stream.sequence, **more}
    answer = api.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, object]] = answer.json()["hits"]
    return found


def test_vectors_are_pushed_found_learnt_and_forgotten(stream: VectorStream, api: LocalApi) -> None:
    trees = stream.land("trees", TREES)
    assert hits(api, trees[7], stream, k=1)[0]["id"] == "trees/7"
    stream.learn()
    items = [
        {"vector": vector.tolist(), "class": name, "id": f"b/{at}"}
        for at, (name, vector) in enumerate(zip(BIRDS, vectors_of(BIRDS, 1), strict=True))
    ]
    answer = api.post("/v1/items", json={"items": items}, headers={"Idempotency-Key": "birds"})
    assert answer.status_code == 202, answer.text
    assert (
        api.post("/v1/items", json={"items": items}, headers={"Idempotency-Key": "birds"}).json()
        == answer.json()
    )
    assert stream.ingest() == []
    api.post("/v1/items", json={"items": []})
    (stream.inboxes[0] / "birds.task.json").write_bytes(
        b'{"format": 1, "task": "birds", "task_complete": true, "shards": null}'
    )
    stream.ingest()
    version = stream.learn()

    # The head is that of all vectors as they are coded: what a stream that had seen them at once would have.
    store = Store.open(stream.config.root)
    head, sums = store.head_of(version), store.sums_of(version)
    assert sums is not None
    h = np.concatenate([trees, vectors_of(BIRDS, 1)])
    oracle = ClassSums.of(sums.lift, encode(h), TREES + BIRDS)
    assert sums.equals(oracle)
    assert solve_head(oracle, head.settings).equals(head)

    z = head.embed(encode(h).decode())
    query = vectors_of(["bird 2"], 9)[0]
    found = hits(api, query, stream, k=5)
    part = head.known_dim or None
    expected = np.argsort(-(z[:, :part] @ head.embed(query[None])[0, :part]))[:5]
    names = [f"trees/{i}" for i in range(60)] + [f"b/{i}" for i in range(48)]
    assert [hit["id"] for hit in found] == [names[row] for row in expected]
    by_version = api.post(
        "/v1/search", json={"vector": head.embed(query[None])[0].tolist(), "version": version, "k": 5}
    )
    assert [hit["id"] for hit in by_version.json()["hits"]] == [hit["id"] for hit in found]
    batch = api.post("/v1/search/batch", json={"vectors": [query.tolist()] * 20, "k": 5}).json()["results"]
    assert [hit["id"] for hit in batch[19]["hits"]] == [hit["id"] for hit in found]

    stream.writer.forget("class", "bird 2", 12)
    forget_in_sums(stream.writer)
    stream.writer.maintain(MaintenancePolicy(retention=timedelta(0)))
    assert {hit["class"] for hit in hits(api, query, stream, k=50)}.isdisjoint({"bird 2"})
    proof = verify_forgotten(stream.config.root, "class", "bird 2")
    assert proof.findings == []
    assert len(proof.inbox) == 1, "the shard as it was pushed"
    after = Store.open(stream.config.root).sums_of(version)
    kept = [row for row, name in enumerate(TREES + BIRDS) if name != "bird 2"]
    assert after is not None
    assert after.equals(ClassSums.of(sums.lift, encode(h[kept]), [(TREES + BIRDS)[row] for row in kept]))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_a_table_of_vectors_lands_as_it_is(stream: VectorStream, kind: pa.DataType) -> None:
    vectors = vectors_of(TREES)
    column = pa.array(
        list(vectors.astype(np.float16 if kind == pa.float16() else np.float32)), pa.list_(kind)
    )
    table = pa.table(
        {"embedding": column, "label": TREES, "id": [f"t/{i}" for i in range(len(TREES))], "pixels": TREES}
    )
    pq.write_table(table, stream.inboxes[0] / "table.parquet")
    assert stream.ingest() == []
    rows = stream.writer.store.gallery_rows()
    assert rows["item_id"].to_pylist() == [f"t/{i}" for i in range(60)]


def test_an_npz_lands_as_it_is(stream: VectorStream) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, vector=vectors_of(TREES), label=np.array(TREES), item_id=np.arange(60))
    (stream.inboxes[0] / "arrays.npz").write_bytes(file.getvalue())
    assert stream.ingest() == []
    rows = stream.writer.store.gallery_rows(vectors=False)
    assert (rows["item_id"].to_pylist()[3], rows["class_name"].to_pylist()[13]) == ("3", "tree 1")


def test_what_cannot_be_used_is_quarantined_with_its_reason(stream: VectorStream) -> None:
    good = vectors_of(["a"] * 6)
    rows = [good[0], good[1][:5], good[2] * np.nan, good[3] * 0, None, good[5] * 1e30]
    table = pa.table({"vector": pa.array(rows, pa.list_(pa.float64())), "label": ["a"] * 6})
    pq.write_table(table, stream.inboxes[0] / "bad.parquet")
    pq.write_table(pa.table({"image": [b"png"], "label": ["a"]}), stream.inboxes[0] / "images.parquet")
    pq.write_table(pa.table({"vector": ["text"], "label": ["a"]}), stream.inboxes[0] / "text.parquet")
    (stream.inboxes[0] / "pickled.npz").write_bytes(_pickled())
    reasons = ["bad_vector"] * 3 + [
        "corrupt_file",
        "missing_vector",
        "wrong_dimension",
        "wrong_schema",
        "wrong_schema",
    ]
    assert stream.ingest() == sorted(reasons)
    details = " ".join(stream.writer.store.quarantine_rows()["detail"].to_pylist())
    assert "no column vector or embedding or embeddings or vec; found ['image', 'label']" in details
    assert f"5 values; this stream takes vectors of {D}" in details
    assert stream.writer.store.gallery_rows().num_rows == 1


def _pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, vector=np.array([{"a": 1}, None], object))
    return file.getvalue()


def test_what_has_no_class_is_found_and_learnt_from_once_it_has_one(
    stream: VectorStream, api: LocalApi
) -> None:
    stream.land("trees", TREES)
    stream.learn()
    fresh = vectors_of(["bird 0"] * 8, 3)
    body = {"items": [{"vector": v.tolist(), "id": f"new/{at}"} for at, v in enumerate(fresh)]}
    assert api.post("/v1/items", json=body).status_code == 202
    stream.ingest()
    (hit,) = hits(api, fresh[3], stream, k=1)
    assert (hit["id"], hit["class"]) == ("new/3", "")
    assert {row["name"] for row in api.get("/v1/classes").json()["classes"]} == set(TREES)
    before = Store.open(stream.config.root).sums_of(stream.writer.tree.head)

    answer = api.request("PATCH", "/v1/items/new%2F3", json={"class": "bird 0"})
    assert answer.status_code == 202, answer.text
    labels = pa.table({"item_id": [f"new/{i}" for i in (0, 1, 9)], "class_name": ["bird 0"] * 3})
    pq.write_table(labels, stream.inboxes[0] / "labels.parquet")
    assert stream.ingest() == ["unknown_item"]
    (stream.inboxes[0] / "more.task.json").write_bytes(
        b'{"format": 1, "task": "more", "task_complete": true, "shards": null}'
    )
    stream.ingest()
    version = stream.learn()
    store = Store.open(stream.config.root)
    sums = store.sums_of(version)
    assert sums is not None
    assert before is not None
    assert dict(zip(sums.names, sums.counts_C.tolist(), strict=True))["bird 0"] == 3
    three = ClassSums.of(sums.lift, encode(fresh[[3, 0, 1]]), ["bird 0"] * 3)
    assert sums.minus(three).equals(before)
    (again,) = hits(api, fresh[3], stream, k=1, filter={"class": "bird 0"})
    assert (again["id"], again["class"]) == ("new/3", "bird 0")
    assert api.get("/v1/items/new%2F5").json()["class"] == ""


def test_refusals_say_what_to_send(stream: VectorStream, api: LocalApi) -> None:
    stream.land("trees", TREES)
    vector = vectors_of(["a"])[0].tolist()
    for url, body, error, says in (
        (
            "/v1/items",
            {"items": [{"vector": vector[:5], "class": "a"}]},
            "bad_dimension",
            "those of this stream 24",
        ),
        (
            "/v1/items",
            {"items": [{"image": "iVBORw0KGgo=", "class": "a"}]},
            "bad_items",
            "takes vectors of 24 values",
        ),
        ("/v1/items", {"items": [{"vector": [0.0] * 24}]}, "bad_vector", "no direction"),
        ("/v1/search", {"vector": vector[:5]}, "bad_dimension", "this stream takes 24"),
        ("/v1/search", {"image": "iVBORw0KGgo="}, "no_images", "takes vectors"),
    ):
        answer = api.post(url, json=body)
        assert (answer.status_code, answer.json()["error"]) == (422, error), answer.text
        assert says in answer.text
    assert api.request("PATCH", "/v1/items/none", json={"class": "a"}).status_code == 404
    assert Client.push_vectors.__doc__


def test_random_features_are_those_that_the_root_was_made_with(tmp_path: Path) -> None:
    """Stored sums are sums of them: another number would hold for some stages and not for others."""
    stream = VectorStream(tmp_path)
    stream.close()
    model = {"backbone": "none", "head": "discriminant", "dim": 12}
    for lift in (0, 32):
        with pytest.raises(ConfigError, match=rf"lift 16 \(asked for {lift}\); set `model` back"):
            open_root(vector_config(tmp_path, model={**model, "lift": lift}))
    for given in ({"lift": 16}, {}):
        open_root(vector_config(tmp_path, model={**model, **given}))
    changed = vector_config(tmp_path, model=model, seed=7)
    store = Store.open(str(tmp_path))
    assert _lift_of(store, store.tree.head, changed) == Lift(D, 16, stream.config.seed)
