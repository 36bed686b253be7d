"""Search by image or by vector, one query or many. The hot path: no schema library, one backend call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette._utils import get_route_path
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stream_odml.config.service import ServiceOptions
from stream_odml.service.backend import Answer, Floats, Query
from stream_odml.service.body import (
    MAX_VECTOR_VALUES,
    QUERY_KEYS,
    from_base64,
    known_keys,
    media_type,
    name_from,
    optional,
    query_from_json,
    query_from_url,
    read_json,
    read_on_thread,
    unsupported,
    vector_from,
    vectors_from,
)
from stream_odml.service.errors import bad_request, unprocessable
from stream_odml.service.multipart import Part, parse_multipart
from stream_odml.service.openapi import BATCH_BODY, SEARCH_BODY
from stream_odml.service.pool import ShortestFirst
from stream_odml.service.replies import answer_json, backend_of, hits_json, options_of, reply

router = APIRouter(prefix="/v1", tags=["search"])

_ONE = QUERY_KEYS | {"vector", "image", "version"}
_MANY = QUERY_KEYS | {"vectors", "images", "version"}
MAX_HITS = 100_000
"""Hits of one answer, over all its queries."""
FEW_HITS = 500
"""Hits whose JSON is written in less time than a thread takes to be handed them."""
BYTES_PER_HIT = 200
_WANTED = "application/json, multipart/form-data, or the bytes of an image as image/*"


@router.post("/search", openapi_extra=SEARCH_BODY, response_class=Response, summary="Nearest items")
async def search(request: Request) -> Response:
    """Nearest items of one image (raw bytes, multipart or base64) or one vector; filters, grouping by class."""
    kind = media_type(request)
    if kind == "application/json":
        return await _search_json(request)
    if kind == "multipart/form-data":
        form, body = request.headers["content-type"], await request.body()
        image = await read_on_thread(request, body, lambda: _image_of(parse_multipart(form, body)))
        return await _search_image(request, image, query_from_url(request, options_of(request).max_k))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await _search_image(
            request, await request.body(), query_from_url(request, options_of(request).max_k)
        )
    raise unsupported(kind or "a body without Content-Type", _WANTED)


def _image_of(parts: list[Part]) -> bytes:
    images = [part.content for part in parts if part.name == "image"]
    if len(images) != 1:
        raise bad_request(
            f"the form has {len(images)} parts named 'image'", "send one; /v1/search/batch takes more"
        )
    return images[0]


@dataclass(frozen=True)
class _Asked:
    """A query read from JSON: either images or vectors [n, d] of ``version``."""

    query: Query
    images: list[bytes] | None = None
    vectors: Floats | None = None
    version: str | None = None


async def _search_json(request: Request) -> Response:
    max_k = options_of(request).max_k
    asked = await read_json(request, lambda body: _one(body, max_k), MAX_VECTOR_VALUES)
    if asked.images is not None:
        return await _search_image(request, asked.images[0], asked.query)
    backend = backend_of(request, "vector")
    assert asked.vectors is not None
    if asked.query.min_version is not None or asked.query.min_seq is not None:
        await backend.wait_for(asked.query)
    answer = await backend.search_vectors(asked.vectors, asked.version, asked.query)
    return await _answered(request, answer, asked.query, lambda: answer_json(answer, asked.query))


def _one(body: dict[str, Any], max_k: int) -> _Asked:
    known_keys(body, _ONE)
    query = _bounded(query_from_json(body, max_k), 1)
    if ("vector" in body) == ("image" in body):
        raise unprocessable(
            "bad_query", "the query has neither or both of vector and image", "send one of them"
        )
    if "image" in body:
        _no_version(body)
        return _Asked(query, images=[from_base64(body["image"], "image")])
    version = optional(name_from, body.get("version"), "version")
    return _Asked(query, vectors=vector_from(body["vector"])[None], version=version)


def _bounded(query: Query, count: int) -> Query:
    """ApiError 422 for more hits in all than an answer may have."""
    hits = count * query.k * (query.group_size if query.group_by_class else 1)
    if hits > MAX_HITS:
        raise unprocessable(
            "too_many_hits", f"{hits} hits are asked for", f"ask for at most {MAX_HITS} in one request"
        )
    return query


async def _answered(
    request: Request, answer: Answer, query: Query, build: Callable[[], dict[str, Any]]
) -> Response:
    """Write a long answer on a thread: its JSON takes the event loop from everybody else."""
    count = sum(map(len, answer.hits))
    if count <= FEW_HITS:
        return reply(build())
    pool: ShortestFirst = request.app.state.parsing
    return await pool.run(count * BYTES_PER_HIT, lambda: reply(build()))


async def _search_image(request: Request, image: bytes, query: Query) -> Response:
    backend = backend_of(request, "image")
    await backend.wait_for(query)
    answer = await backend.search_images([image], query)
    return await _answered(request, answer, query, lambda: answer_json(answer, query))


@router.post(
    "/search/batch", openapi_extra=BATCH_BODY, response_class=Response, summary="Many queries at once"
)
async def search_batch(request: Request) -> Response:
    """Many vectors (lists, or packed as base64) or many base64 images; all are answered by one snapshot."""
    if media_type(request) != "application/json":
        raise unsupported(media_type(request) or "a body without Content-Type", "application/json")
    options = options_of(request)
    asked = await read_json(request, lambda body: _many(body, options))
    backend, query = backend_of(request, "batch"), asked.query
    await backend.wait_for(query)
    if asked.images is not None:
        answer = await backend.search_images(asked.images, query)
    else:
        assert asked.vectors is not None
        answer = await backend.search_vectors(asked.vectors, asked.version, query)

    def build() -> dict[str, Any]:
        results = [hits_json(hits, query) for hits in answer.hits]
        return {"version": answer.version, "sequence": answer.sequence, "results": results}

    return await _answered(request, answer, query, build)


def _many(body: dict[str, Any], options: ServiceOptions) -> _Asked:
    known_keys(body, _MANY)
    query = query_from_json(body, options.max_k)
    if ("vectors" in body) == ("images" in body):
        raise unprocessable(
            "bad_query", "the batch has neither or both of vectors and images", "send one of them"
        )
    if "images" in body:
        _no_version(body)
        images = _images(body["images"], options.max_batch)
        return _Asked(_bounded(query, len(images)), images=images)
    version = optional(name_from, body.get("version"), "version")
    vectors = vectors_from(body["vectors"], options.max_batch)
    return _Asked(_bounded(query, len(vectors)), vectors=vectors, version=version)


def _images(value: object, limit: int) -> list[bytes]:
    if not isinstance(value, list) or not 1 <= len(value) <= limit:
        raise unprocessable("bad_batch", "images is no list of a size allowed", f"send 1 to {limit} images")
    return [from_base64(one, "image") for one in value]


def _no_version(body: dict[str, Any]) -> None:
    if body.get("version") is not None:
        raise unprocessable(
            "bad_query", "version belongs to vectors", "images are embedded by the served version"
        )


class Shortcut:
    """ASGI middleware around the framework for searches, which need nothing of it: routing and dependency solving
    take several times as long as reading the vector. What it raises, the door answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = _SHORT.get(get_route_path(scope))
            if handler is not None:
                response = await handler(Request(scope, receive))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


_SHORT = {"/v1/search": search, "/v1/search/batch": search_batch}
