"""Vectors on the client's side: `docs/howto/query-vectors.md` executed as it stands, against the service's own way."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from stream_odml.config.service import ServiceOptions
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings, solve_head
from stream_odml.learn.drift import AffineMap, DriftMap, IdentityMap, KernelMap, compose
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.learn.settings import KernelName
from stream_odml.search.portable import portable_map
from stream_odml.search.space import Space
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from stream_odml.store.versions import VersionTree
from tests.deploy.paths import REPOSITORY
from tests.service.local import LocalApi
from tests.service.test_exact_form import ExactStream
from tests.service.tiny_stream import TinyStream

PAGE = (REPOSITORY / "docs" / "howto" / "query-vectors.md").read_text(encoding="utf-8")
APPLIER, CLIENT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
Apply = Callable[[Any, Any], NDArray[np.float64]]
D = 6
TREE = cast(VersionTree, SimpleNamespace(same_trunk=lambda a, b: a == b))


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    defined: dict[str, Any] = {}
    exec(compile(APPLIER, "query-vectors.md", "exec"), defined)
    return defined


@pytest.fixture(scope="module")
def apply_map(names: dict[str, Any]) -> Apply:
    return cast(Apply, names["apply_map"])


def loaded(npz: bytes) -> Any:
    return np.load(io.BytesIO(npz), allow_pickle=False)


def space(drift: DriftMap, heads: dict[str, DiscriminantHead] | None = None) -> Space:
    mapper: Any = SimpleNamespace(get=lambda tree, start, end: drift)
    if heads is None:
        return Space("b", D, mapper)
    return Space("b", heads["b"].dim, mapper, heads["b"], heads.__getitem__, {"a": 5.0, "b": 2.0})


def affine(seed: int) -> AffineMap:
    rng = np.random.default_rng(seed)
    return AffineMap(rng.normal(size=(D, D)), rng.normal(size=D))


def kernel(name: KernelName, base: AffineMap | None) -> KernelMap:
    rng = np.random.default_rng(3)
    centres, residuals = rng.normal(size=(2, 9, D)).astype(np.float32)
    return KernelMap(centres, residuals, base, name, 0.4, 0.05)


def solved(seed: int, width: int) -> DiscriminantHead:
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(30, D)).astype(np.float32) + 2 * rng.normal(size=(3, D)).repeat(10, 0)
    sums = ClassSums.of(Lift(D, width), encode(h.astype(np.float32)), [f"c{i // 10}" for i in range(30)])
    return solve_head(sums, HeadSettings(dim=3, width=width))


@pytest.mark.parametrize(
    "drift",
    [
        IdentityMap(),
        affine(1),
        kernel("softmax", affine(2)),
        kernel("gaussian", None),
        kernel("clamped", None),
        kernel("cosine", affine(4)),
        compose([affine(1), kernel("softmax", None), affine(5)]),
    ],
    ids=lambda drift: type(drift).__name__,
)
def test_the_lines_apply_every_drift_map(apply_map: Apply, drift: DriftMap) -> None:
    z = np.random.default_rng(0).normal(size=(40, D)).astype(np.float32)
    found = apply_map(loaded(portable_map(space(drift), TREE, "a", "b").to_npz()), z)
    expected = drift.apply(z)
    assert found == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True), abs=2e-5)


@pytest.mark.parametrize("width", [0, 16])
@pytest.mark.parametrize(
    "drift", [IdentityMap(), affine(1), kernel("softmax", None)], ids=lambda d: type(d).__name__
)
def test_the_lines_read_an_embedding_of_one_head_by_another(
    apply_map: Apply, drift: DriftMap, width: int
) -> None:
    heads = {"a": solved(1, 0), "b": solved(2, width)}
    z = heads["a"].embed(np.random.default_rng(0).normal(size=(40, D)).astype(np.float32))
    h = heads["a"].direction(z)
    expected = heads["b"].embed(h if isinstance(drift, IdentityMap) else drift.apply(h * np.float32(5.0)))
    file = loaded(portable_map(space(drift, heads), TREE, "a", "b").to_npz())
    assert apply_map(file, z) == pytest.approx(expected, abs=1e-4)
    assert (str(file["from"]), str(file["to"])) == ("a", "b")


@pytest.fixture(params=[TinyStream, ExactStream])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TinyStream]:
    stream = request.param(tmp_path)
    yield stream
    stream.close()


def test_a_vector_that_a_client_kept_finds_its_item_two_versions_later(
    stream: TinyStream, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = stream.land("a", ["cat", "dog", "owl"], per_class=4)
    stream.stage()
    options = ServiceOptions(poll_s=60.0)
    replica = Replica(stream.root, options)
    replica.start()
    with LocalApi(create_app(replica, options, replica.metrics)) as api:

        def send(request: httpx.Request) -> httpx.Response:
            path = request.url.raw_path.decode("ascii")
            answer = api.request(request.method, path, content=request.content, headers=request.headers)
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

        real = httpx.Client
        monkeypatch.setattr(
            httpx, "Client", lambda **more: real(**{**more, "transport": httpx.MockTransport(send)})
        )
        monkeypatch.chdir(tmp_path)
        Path("leaf.jpg").write_bytes(stream.images[ids[5]])
        begun, rest = CLIENT.split("file = ", 1)
        exec(begun, scope := {**names})
        plain = api.post(
            "/v1/embed", content=stream.images[ids[5]], headers={"Content-Type": "image/png"}
        ).json()
        assert plain["vectors"][0] == pytest.approx(scope["kept"].vectors[0].tolist(), abs=1e-6)
        assert plain["version"] == scope["kept"].version == stream.head
        for name in ("b", "c"):
            stream.land(name, [f"elk {name}"], per_class=4)
            stream.stage()
        assert replica.puller.poll()
        exec("file = " + rest, scope)
        answer = scope["answer"]
        assert answer.version == stream.head != scope["kept"].version
        assert answer.hits[0].item_id == ids[5]
        assert answer.hits[0].score == pytest.approx(1.0, abs=5e-3)
        unknown = api.get("/v1/maps?from=v9999")
        assert (unknown.status_code, unknown.json()["error"]) == (422, "unknown_version")
    replica.close()


def test_what_is_no_request_for_vectors_is_refused(stream: TinyStream) -> None:
    stream.land("a", ["cat"])
    options = ServiceOptions(poll_s=60.0, max_batch=2)
    replica = Replica(stream.root, options)
    replica.start()
    image = base64.b64encode(next(iter(stream.images.values()))).decode()
    with LocalApi(create_app(replica, options, replica.metrics)) as api:
        for body, error in (
            ({"images": [image] * 3}, "bad_batch"),
            ({}, "bad_batch"),
            ({"image": image, "packed": 1}, "bad_packed"),
            ({"image": image, "pack": True}, "unknown_field"),
            ({"image": base64.b64encode(b"text").decode()}, "not_an_image"),
        ):
            answer = api.post("/v1/embed", json=body)
            assert (answer.status_code, answer.json()["error"]) == (422, error)
    replica.close()
