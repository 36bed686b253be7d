"""A replica over a real stream root: it follows every commit, and no answer mixes two versions."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from stream_odml.service.backend import Query, Question
from stream_odml.service.metrics import Exporter
from stream_odml.service.replica import Replica
from stream_odml.store.store import Store
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream, picture

OPTIONS = ServiceOptions(poll_s=0.02, wait_s=30.0, max_pixels=1 << 16, max_ongoing_requests=64)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TinyStream]:
    stream = TinyStream(tmp_path)
    yield stream
    stream.close()


@pytest.fixture
def replica(stream: TinyStream) -> Iterator[Replica]:
    replica = Replica(stream.root, OPTIONS)
    replica.start()
    yield replica
    replica.close()


@pytest.fixture
def api(replica: Replica) -> Iterator[LocalApi]:
    with LocalApi(create_app(replica, OPTIONS, replica.metrics)) as api:
        yield api


def ask(api: LocalApi, image: bytes, **params: Any) -> dict[str, Any]:
    answer = api.post("/v1/search", params=params, content=image, headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_what_lands_is_found_and_what_is_learnt_is_served(stream: TinyStream, api: LocalApi) -> None:
    root = stream.head
    ids = stream.land("a", ["cat", "dog"])
    sequence = stream.sequence
    found = ask(api, stream.images[ids[0]], min_seq=sequence, k=1)
    assert (found["version"], found["hits"][0]["id"], found["hits"][0]["class"]) == (root, ids[0], "cat")
    version = stream.stage()
    late = stream.land("b", ["owl"])
    for item in (ids[3], late[0]):
        found = ask(api, stream.images[item], min_version=version, min_seq=stream.sequence, k=1)
        assert (found["version"], found["hits"][0]["id"]) == (version, item)
        assert found["hits"][0]["score"] == pytest.approx(1.0, abs=1e-4)


def test_a_vector_of_an_older_version_is_mapped_and_an_unknown_one_refused(
    stream: TinyStream, api: LocalApi
) -> None:
    root = stream.head
    ids = stream.land("a", ["cat", "dog"])
    old = stream.vectors(ids)
    version = stream.stage()
    body = {"vector": old[2].tolist(), "version": root, "k": 1, "min_version": version}
    hit = api.post("/v1/search", json=body).json()["hits"][0]
    assert (hit["id"], round(hit["score"], 4)) == (ids[2], 1.0)
    assert (
        api.post("/v1/search", json={**body, "version": "v0009-00000000"}).json()["error"]
        == "unknown_version"
    )
    assert api.post("/v1/search", json={"vector": [1.0] * 5}).json()["error"] == "bad_dimension"
    both = {"vectors": [v.tolist() for v in old], "version": root, "k": 1}
    assert [r["hits"][0]["id"] for r in api.post("/v1/search/batch", json=both).json()["results"]] == ids


def test_filters_and_groups_reach_the_gallery(stream: TinyStream, api: LocalApi) -> None:
    ids = stream.land("a", ["cat", "dog", "owl"], per_class=4)
    query = {"min_seq": stream.sequence, "k": 12}
    image = stream.images[ids[0]]
    assert {h["class"] for h in ask(api, image, **query, **{"class": "owl"})["hits"]} == {"owl"}
    left = ask(api, image, **query, attribute="side:left")["hits"]
    assert {h["id"] for h in left} == {item for i, item in enumerate(ids) if i % 2}
    assert left[0]["attributes"] == {"side": "left"}
    groups = ask(api, image, **{**query, "k": 2}, group_by="class", group_size=3)["groups"]
    assert [len(g["hits"]) for g in groups] == [3, 3]
    assert groups[0]["class"] == "cat"


def test_images_that_are_none_or_too_large_are_refused(stream: TinyStream, api: LocalApi) -> None:
    stream.land("a", ["cat"])
    png = {"content-type": "image/png"}
    assert api.post("/v1/search", content=b"no image", headers=png).json()["error"] == "not_an_image"
    assert api.post("/v1/search", content=b"", headers=png).json()["error"] == "empty_image"
    assert api.post("/v1/search", content=picture(0)[:-30], headers=png).status_code == 422
    bomb = picture(0, size=512)
    assert len(bomb) < 10_000
    assert api.post("/v1/search", content=bomb, headers=png).json()["error"] == "image_bomb"
    body = {"items": [{"image": "bm9wZQ==", "class": "cat"}]}
    assert api.post("/v1/items", json=body).json()["error"] == "not_an_image"


def test_a_push_is_a_shard_of_the_inbox_and_lands_once(
    stream: TinyStream, api: LocalApi, tmp_path: Path
) -> None:
    key = {"Idempotency-Key": "monday"}
    files = {"image": ("a.png", picture(70), "image/png")}
    first = api.post("/v1/items", data={"class": "fox"}, files=files, headers=key)
    assert first.status_code == 202, first.text
    assert api.post("/v1/items", data={"class": "fox"}, files=files, headers=key).json() == first.json()
    assert [path.name for path in stream.inbox.iterdir()] == [first.json()["shard"]]
    other = api.post("/v1/items", data={"class": "elk"}, files=files, headers=key)
    assert (other.status_code, other.json()["error"]) == (409, "key_reused")
    stream.ingest()
    sequence = stream.sequence
    found = ask(api, picture(70), min_seq=sequence, k=1)["hits"][0]
    assert (found["id"], found["class"]) == (first.json()["ids"][0], "fox")


def test_items_classes_thumbnails_versions_and_the_map(stream: TinyStream, api: LocalApi) -> None:
    ids = stream.land("a", ["cat", "dog"])
    version = stream.stage()
    stream.land("b", ["owl"], per_class=3)
    ask(api, stream.images[ids[0]], min_seq=stream.sequence)
    item = api.get(f"/v1/items/{ids[1]}").json()
    assert (item["class"], item["thumbnail"], item["version"]) == ("cat", True, version)
    assert api.get(f"/v1/items/{ids[1]}/thumbnail").headers["content-type"].startswith("image/")
    classes = api.get("/v1/classes").json()["classes"]
    assert [(c["name"], c["count"], c["learnt"]) for c in classes] == [
        ("owl", 3, False),
        ("dog", 2, True),
        ("cat", 2, True),
    ]
    tree = api.get("/v1/versions").json()
    assert tree["head"] == version
    assert tree["versions"][1]["metrics"]["forgetting"] == 0.01
    plane = api.get("/v1/projection").json()
    assert sorted(plane["ids"]) == sorted(stream.images)
    assert max(map(abs, plane["x"] + plane["y"])) == pytest.approx(1.0)
    assert (plane["attributes"], "values" in plane, "differs" in plane) == (["side"], False, False)
    coloured = api.get("/v1/projection?attribute=side&errors=true").json()
    assert coloured["values"] == ["right", "left"]
    sides = [coloured["values"][value] for value in coloured["value"]]
    expected = ["left" if int(item.split("/")[1]) % 2 else "right" for item in coloured["ids"]]
    assert sides == expected
    assert len(coloured["differs"]) == 7
    laid_out = api.get("/v1/projection?neighbours=2").json()
    classes_of = [laid_out["classes"][code] for code in laid_out["class"]]
    nearest_of = [classes_of[near[0]] for near in laid_out["neighbours"]]
    alike = [a == b for a, b in zip(classes_of, nearest_of, strict=True)]
    assert {len(near) for near in laid_out["neighbours"]} == {2}
    assert [not one for one in alike] == coloured["differs"]
    status = api.get("/v1/status").json()
    assert (status["items"], status["classes"], status["lag"]["waiting_images"]) == (7, 3, 3)
    assert status["quarantined"] == {}
    assert status["driver"] is None


def test_what_is_forgotten_is_gone_with_its_picture(stream: TinyStream, api: LocalApi) -> None:
    ids = stream.land("a", ["cat", "dog"])
    stream.writer.forget("item", ids[0])
    found = ask(api, stream.images[ids[0]], min_seq=stream.sequence, k=4)
    assert ids[0] not in {hit["id"] for hit in found["hits"]}
    assert api.get(f"/v1/items/{ids[0]}").status_code == 404
    assert api.get(f"/v1/items/{ids[0]}/thumbnail").status_code == 404


def test_rollback_without_a_driver_is_refused_and_with_one_served_at_once(
    stream: TinyStream, api: LocalApi
) -> None:
    root = stream.head
    ids = stream.land("a", ["cat", "dog"])
    stream.stage()
    late = stream.land("b", ["owl"])
    ask(api, stream.images[late[0]], min_seq=stream.sequence)
    refused = api.post(f"/v1/versions/{root}/rollback")
    assert (refused.status_code, refused.json()["error"]) == (503, "driver_away")
    stream.back_to(root)
    for item in (ids[0], late[0]):
        found = ask(api, stream.images[item], min_seq=stream.sequence, k=1)
        assert (found["version"], found["hits"][0]["id"]) == (root, item)
        assert found["hits"][0]["score"] == pytest.approx(1.0, abs=1e-3)


def test_queries_under_swaps_all_succeed_and_never_mix_versions(stream: TinyStream, replica: Replica) -> None:
    """Tier-1 commits and model changes in turn, while clients ask. Were model and gallery of two versions
    ever combined, an image would not find itself with cosine 1; were versions misnamed, a vector made by
    the version that the last answer named would not either."""
    ids = stream.land("a", ["cat", "dog", "owl"])
    while replica.puller.bundle is None or len(replica.puller.bundle.snapshot) < len(ids):
        time.sleep(0.01)
    app = create_app(replica, OPTIONS, replica.metrics)
    done = threading.Event()
    problems: list[object] = []
    versions: set[str] = set()
    deadline = time.monotonic() + 300

    async def client(number: int) -> int:
        asked = 0
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            while not done.is_set():
                item = ids[(number + asked) % len(ids)]
                body = stream.images[item]
                answer = await http.post(
                    "/v1/search?k=1", content=body, headers={"content-type": "image/png"}
                )
                asked += 1
                if answer.status_code != 200:
                    problems.append(answer.text)
                    continue
                hit = answer.json()["hits"][0]
                versions.add(answer.json()["version"])
                if hit["id"] != item or abs(hit["score"] - 1) > 1e-3:
                    problems.append((item, hit, answer.json()["version"]))
        return asked

    async def clients() -> int:
        return sum(await asyncio.gather(*(client(i) for i in range(4))))

    asked: list[int] = []
    thread = threading.Thread(target=lambda: asked.append(asyncio.run(clients())))
    thread.start()
    try:
        for number in range(8):
            stream.land(f"more-{number}", [f"class {number}"])
            version = stream.stage()
            while version not in versions and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        done.set()
        thread.join(timeout=600)
    assert not problems, problems[:3]
    assert len(versions) >= 8
    assert replica.puller.swaps >= 8
    assert asked[0] >= 8


def test_a_store_that_fails_leaves_what_is_loaded_in_service(
    stream: TinyStream, api: LocalApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = stream.land("a", ["cat"])
    ask(api, stream.images[ids[0]], min_seq=stream.sequence)

    failed = threading.Event()

    def fail(*_: object) -> None:
        if failed.is_set():  # what the first one led to is over
            again.set()
        failed.set()
        raise OSError("the disk is away")

    again = threading.Event()

    with monkeypatch.context() as broken:
        broken.setattr(Store, "refresh", fail)
        assert again.wait(60)
        assert ask(api, stream.images[ids[0]], k=1)["hits"][0]["id"] == ids[0]
        assert "stream_odml_store_poll_errors_total 0.0" not in api.get("/metrics").text
    later = stream.land("b", ["dog"])
    assert ask(api, stream.images[later[0]], min_seq=stream.sequence, k=1)["hits"][0]["id"] == later[0]


def test_each_replica_is_scrapeable_and_announced(
    stream: TinyStream, replica: Replica, tmp_path: Path
) -> None:
    options = ServiceOptions(metrics_ports=(0, 0))
    stale = tmp_path / "metrics" / "replica-dead.json"
    stale.parent.mkdir()
    import socket

    labels = {"replica": "dead", "__meta_host": socket.gethostname(), "__meta_pid": "999999999"}
    stale.write_text(json.dumps([{"targets": ["127.0.0.1:1"], "labels": labels}]))
    exporters = [
        Exporter(replica.metrics, name, options, folder=tmp_path / "metrics", node_address="")
        for name in ("r1", "r2")
    ]
    found = [json.loads(path.read_text())[0] for path in sorted((tmp_path / "metrics").glob("*.json"))]
    assert [entry["labels"]["replica"] for entry in found] == ["r1", "r2"]
    for entry in found:
        with urllib.request.urlopen(f"http://{entry['targets'][0]}/metrics") as answer:
            text = answer.read().decode()
        assert f'stream_odml_served_version_info{{version="{stream.head}"}} 1.0' in text
    for exporter in exporters:
        exporter.close()
    assert not list((tmp_path / "metrics").glob("*.json"))


def test_what_searches_and_how_well_is_exported(stream: TinyStream) -> None:
    stream.land("a", ["cat", "dog", "owl"], per_class=8)
    for kind, recall in (("exact", 1.0), ("hnsw", None)):
        options = OPTIONS.model_copy(update={"search": kind})
        replica = Replica(stream.root, options)
        replica.start()
        with LocalApi(create_app(replica, options, replica.metrics)) as api:
            status, text = api.get("/v1/status").json(), api.get("/metrics").text
        replica.close()
        exported = float(text.split("\nstream_odml_search_recall ")[1].split()[0])
        assert (status["searcher"], status["recall"]) == (kind, exported)
        assert exported == recall if recall else exported >= options.recall_target
        assert status["memory_bytes"] > 24 * 16 * 4


def test_coalesced_queries_get_each_their_own_answer(stream: TinyStream, replica: Replica) -> None:
    ids = stream.land("a", ["cat", "dog", "owl"])
    while len(replica.puller.serving().snapshot) < len(ids):
        time.sleep(0.01)
    vectors = stream.vectors(ids)
    app = create_app(replica, OPTIONS, replica.metrics)

    async def burst() -> list[httpx.Response]:
        api = LocalApi(app)
        bodies = [{"vector": vectors[i % 6].tolist(), "k": 1 + i % 3} for i in range(30)]
        bodies[7]["vector"] = [1.0] * 3
        return await asyncio.gather(*(api.send("POST", "/v1/search", json=body) for body in bodies))

    answers = asyncio.run(burst())
    assert answers[7].status_code == 422
    for i, answer in enumerate(answers):
        if i != 7:
            hits = answer.json()["hits"]
            assert (hits[0]["id"], len(hits)) == (ids[i % 6], 1 + i % 3)
    assert np.isfinite(vectors).all()


def test_a_root_that_vanishes_ends_readiness_but_not_the_answers(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    ids = stream.land("a", ["cat", "dog"])
    replica = Replica(stream.root, ServiceOptions(stale_after_s=60))
    assert replica.puller.poll()
    assert replica.ready() is None
    away = tmp_path / "away"
    Path(stream.root).rename(away)
    replica.puller.poll()
    replica.puller.checked_at -= 61
    assert "last seen" in (replica.ready() or "")
    answer = asyncio.run(replica.search(Question([stream.images[ids[0]]], Query(k=1))))
    assert answer.hits[0][0].item_id == ids[0]
    away.rename(stream.root)
    replica.puller.poll()
    assert replica.ready() is None
    replica.close()
    stream.close()
