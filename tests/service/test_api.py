"""The API over a Backend in memory: what good requests get."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.decode import FORMATS
from stream_odml.service.api import create_app
from stream_odml.service.decoding import decode_checked
from stream_odml.service.errors import ApiError
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi

PNG = b"\x89PNG and so on"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def api(backend: FakeBackend) -> Iterator[LocalApi]:
    with LocalApi(create_app(backend, ServiceOptions(), backend.metrics)) as api:
        yield api


def search(api: LocalApi, **body: Any) -> dict[str, Any]:
    answer = api.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_vector_finds_itself_first_and_the_answer_names_its_version(
    api: LocalApi, backend: FakeBackend
) -> None:
    found = search(api, vector=backend.vectors[6].tolist(), k=3)
    assert (found["version"], found["sequence"]) == ("v0001-bb", 7)
    assert found["hits"][0]["id"] == "shard-1/6"
    assert found["hits"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert len(found["hits"]) == 3


@pytest.mark.parametrize(
    "path", ["/v1/status", "/v1/classes", "/healthz", "/docs", "/openapi.json", "/v1/items/x"]
)
def test_head_has_the_headers_of_get_and_no_body(api: LocalApi, path: str) -> None:
    whole, head = api.get(path), api.request("HEAD", path)
    assert head.status_code == whole.status_code != 405
    assert set(head.headers) == set(whole.headers)  # the status says how old it is
    assert head.content == b""
    assert api.request("HEAD", "/v1/search").status_code == 405


def test_an_image_that_cannot_be_used_names_every_format_that_is_read() -> None:
    with pytest.raises(ApiError) as refused:
        decode_checked(3, b"no image", 8, 100)
    assert refused.value.error == "not_an_image"
    assert "image 3 of" in refused.value.detail
    assert [name for name in FORMATS if name not in refused.value.remedy.upper()] == []


def test_an_image_may_come_raw_as_a_form_or_as_base64(api: LocalApi) -> None:
    raw = api.post("/v1/search?k=2&class=c0", content=PNG, headers={"content-type": "image/png"})
    form = api.post(
        "/v1/search", params={"k": "2", "class": "c0"}, files={"image": ("a.png", PNG, "image/png")}
    )
    packed = api.post(
        "/v1/search", json={"image": base64.b64encode(PNG).decode(), "k": 2, "filter": {"class": "c0"}}
    )
    assert raw.status_code == form.status_code == packed.status_code == 200
    assert raw.json() == form.json() == packed.json()
    assert len(raw.json()["hits"]) == 2


def test_filters_by_class_and_time(api: LocalApi, backend: FakeBackend) -> None:
    vector = backend.vectors[0].tolist()
    hits = search(api, vector=vector, k=50, filter={"class": ["c1", "c2"]})["hits"]
    assert {hit["class"] for hit in hits} == {"c1", "c2"}
    hits = search(
        api, vector=vector, k=50, filter={"from": "2026-01-01T10:00:00Z", "to": "2026-01-01T12:00:00+00:00"}
    )
    assert {hit["id"] for hit in hits["hits"]} == {"shard-1/10", "shard-1/11"}


def test_a_group_size_without_groups_is_refused(api: LocalApi, backend: FakeBackend) -> None:
    """It would change nothing, and whoever sends it believes that it does."""
    vector = backend.vectors[0].tolist()
    for answer in (
        api.post("/v1/search", json={"vector": vector, "group_size": 2}),
        api.post("/v1/search/batch", json={"vectors": [vector], "group_size": 2}),
        api.post("/v1/search?group_size=2", content=b"png", headers={"content-type": "image/png"}),
    ):
        assert (answer.status_code, answer.json()["error"]) == (422, "bad_group_size")
        assert "group_by=class" in answer.text


def test_grouping_gives_each_class_once_best_first(api: LocalApi, backend: FakeBackend) -> None:
    groups = search(api, vector=backend.vectors[0].tolist(), k=3, group_by="class", group_size=2)["groups"]
    assert len(groups) == 3
    assert groups[0]["class"] == "c0"
    assert [len(group["hits"]) for group in groups] == [2, 2, 2]
    scores = [group["hits"][0]["score"] for group in groups]
    assert scores == sorted(scores, reverse=True)


def test_a_batch_as_lists_and_packed_gives_the_same(api: LocalApi, backend: FakeBackend) -> None:
    vectors = backend.vectors[[3, 9]]
    lists = api.post("/v1/search/batch", json={"vectors": vectors.tolist(), "k": 2}).json()
    packed = {"base64": base64.b64encode(vectors.astype("<f4").tobytes()).decode(), "dim": 8}
    assert api.post("/v1/search/batch", json={"vectors": packed, "k": 2}).json() == lists
    assert [result["hits"][0]["id"] for result in lists["results"]] == ["shard-1/3", "shard-1/9"]


def test_reading_what_was_just_written_waits_or_says_when_to_come_back(
    api: LocalApi, backend: FakeBackend
) -> None:
    vector = backend.vectors[0].tolist()
    assert search(api, vector=vector, min_seq=7)["sequence"] == 7
    late = api.post("/v1/search", json={"vector": vector, "min_seq": 8})
    assert late.status_code == 503
    assert late.headers["retry-after"] == "1"


def test_a_push_with_a_key_lands_once(api: LocalApi, backend: FakeBackend) -> None:
    image = base64.b64encode(PNG).decode()
    body = {"items": [{"image": image, "class": "cat", "id": "tom"}, {"image": image, "class": "dog"}]}
    first = api.post("/v1/items", json=body, headers={"Idempotency-Key": "k1"})
    again = api.post("/v1/items", json=body, headers={"Idempotency-Key": "k1"})
    assert first.status_code == again.status_code == 202
    assert first.json()["ids"] == again.json()["ids"] == ["tom", "push-0/1"]
    assert len(backend.pushed) == 1


def test_a_push_as_a_form_takes_several_images(api: LocalApi) -> None:
    files = [("image", ("a.png", PNG, "image/png")), ("image", ("b.png", PNG, "image/png"))]
    answer = api.post("/v1/items", data={"class": "cat", "attributes": '{"colour": "red"}'}, files=files)
    assert answer.status_code == 202, answer.text
    assert len(answer.json()["ids"]) == 2


def test_items_whose_ids_hold_slashes(api: LocalApi) -> None:
    assert api.get("/v1/items/shard-1/6").json()["class"] == "c1"
    assert api.get("/v1/items/shard-1%2F6").json()["class"] == "c1"
    picture = api.get("/v1/items/shard-1/6/thumbnail")
    assert picture.headers["content-type"] == "image/png"
    assert api.get("/v1/items/shard-9/6").status_code == 404


def test_forgetting_and_rollback_go_to_the_driver_and_say_when_it_is_away(
    api: LocalApi, backend: FakeBackend
) -> None:
    assert api.delete("/v1/items/shard-1/6").status_code == 202
    assert api.delete("/v1/classes/c1").status_code == 202
    assert api.post("/v1/versions/v0000-aa/rollback?relearn=false").status_code == 202
    assert backend.asked == [
        ("forget", "item", "shard-1/6"),
        ("forget", "class", "c1"),
        ("rollback", "v0000-aa", "False"),
    ]
    backend.driver_alive = False
    away = api.post("/v1/versions/v0000-aa/rollback")
    assert (away.status_code, away.json()["error"], away.headers["retry-after"]) == (503, "driver_away", "5")


def test_classes_new_since(api: LocalApi) -> None:
    everything = api.get("/v1/classes").json()
    assert [row["name"] for row in everything["classes"]] == ["c4", "c3", "c2", "c1", "c0"]
    recent = api.get("/v1/classes", params={"since": everything["classes"][2]["first_seen"]}).json()
    assert [row["name"] for row in recent["classes"]] == ["c4", "c3"]
    assert [row["name"] for row in api.get("/v1/classes?learnt=true").json()["classes"]] == ["c0"]
    assert api.get("/v1/classes?learnt=false&limit=1").json()["total"] == 4


def test_versions_and_what_changed_between_two(api: LocalApi) -> None:
    tree = api.get("/v1/versions").json()
    assert tree["head"] == "v0001-bb"
    assert [row["parent"] for row in tree["versions"]] == [None, "v0000-aa"]
    diff = api.get("/v1/versions/v0000-aa/diff/v0001-bb").json()
    assert diff["metrics"]["recall_at_1/union/served"] == {"from": 0.5, "to": 0.75, "delta": 0.25}
    assert diff["new_classes"] == ["c0"]


def test_projection_has_a_place_and_a_class_for_every_point(api: LocalApi) -> None:
    plane = api.get("/v1/projection?points=10").json()
    assert len(plane["x"]) == len(plane["y"]) == len(plane["class"]) == len(plane["ids"]) == 10


def test_probes(api: LocalApi, backend: FakeBackend) -> None:
    assert api.get("/healthz").status_code == api.get("/readyz").status_code == 200
    assert api.get("/v1/status").json()["items"] == 20
    backend.loaded = False
    assert api.get("/healthz").status_code == 200
    assert api.get("/readyz").status_code == api.get("/v1/status").status_code == 503


def test_queries_are_counted_by_kind_and_outcome(api: LocalApi, backend: FakeBackend) -> None:
    search(api, vector=backend.vectors[0].tolist())
    api.post("/v1/search", json={"vector": [float(x) for x in range(3)]})
    text = api.get("/metrics").text
    assert 'stream_odml_queries_total{kind="vector",outcome="ok"} 1.0' in text
    assert 'stream_odml_queries_total{kind="vector",outcome="client_error"} 1.0' in text
    assert 'stream_odml_query_seconds_count{kind="vector"} 2.0' in text


def test_openapi_describes_every_address_of_the_api(api: LocalApi) -> None:
    schema = api.get("/openapi.json").json()
    body = schema["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data", "image/png", "image/jpeg", "image/webp"}
    assert set(schema["paths"]) >= {"/v1/items", "/v1/classes", "/v1/versions", "/v1/projection", "/readyz"}


def test_oracle_of_the_fake_itself() -> None:
    """The fake's neighbours are those of a naive loop, so the tests above mean something."""
    fake = FakeBackend()
    best = max(range(len(fake.vectors)), key=lambda i: float(np.dot(fake.vectors[i], fake.vectors[11])))
    assert best == 11


def test_classes_are_found_by_a_part_of_their_name(api: LocalApi) -> None:
    every = [row["name"] for row in api.get("/v1/classes").json()["classes"]]
    part = every[0][1:].upper()
    found = api.get("/v1/classes", params={"named": part, "limit": 2}).json()
    expected = [name for name in every if part.casefold() in name.casefold()]
    assert expected
    assert found["total"] == len(expected)
    assert [row["name"] for row in found["classes"]] == expected[:2]
    assert api.get("/v1/classes", params={"named": "no such class"}).json()["total"] == 0
