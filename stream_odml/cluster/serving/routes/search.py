"""Search by image or by vector, one query or many. The hot path: no schema library, one backend call."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette._utils import get_route_path
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stream_odml.cluster.serving.backend import Query
from stream_odml.cluster.serving.body import (
    QUERY_KEYS,
    from_base64,
    json_object,
    known_keys,
    media_type,
    name_from,
    optional,
    query_from_json,
    query_from_url,
    unsupported,
    vector_from,
    vectors_from,
)
from stream_odml.cluster.serving.errors import bad_request, unprocessable
from stream_odml.cluster.serving.multipart import parse_multipart
from stream_odml.cluster.serving.openapi import BATCH_BODY, SEARCH_BODY
from stream_odml.cluster.serving.replies import answer_json, backend_of, hits_json, options_of, reply

router = APIRouter(prefix="/v1", tags=["search"])

_ONE = QUERY_KEYS | {"vector", "image", "version"}
_MANY = QUERY_KEYS | {"vectors", "images", "version"}
_WANTED = "application/json, multipart/form-data, or the bytes of an image as image/*"


@router.post("/search", openapi_extra=SEARCH_BODY, response_class=Response, summary="Nearest items")
async def search(request: Request) -> Response:
    """Nearest items of one image (raw bytes, multipart or base64) or one vector; filters, grouping by class."""
    kind = media_type(request)
    if kind == "application/json":
        return await _search_json(request)
    if kind == "multipart/form-data":
        parts = parse_multipart(request.headers["content-type"], await request.body())
        images = [part.content for part in parts if part.name == "image"]
        if len(images) != 1:
            raise bad_request(
                f"the form has {len(images)} parts named 'image'", "send one; /v1/search/batch takes more"
            )
        return await _search_image(request, images[0], query_from_url(request, options_of(request).max_k))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await _search_image(
            request, await request.body(), query_from_url(request, options_of(request).max_k)
        )
    raise unsupported(kind or "a body without Content-Type", _WANTED)


async def _search_json(request: Request) -> Response:
    body = await json_object(request)
    known_keys(body, _ONE)
    query = query_from_json(body, options_of(request).max_k)
    if ("vector" in body) == ("image" in body):
        raise unprocessable(
            "bad_query", "the query has neither or both of vector and image", "send one of them"
        )
    if "image" in body:
        _no_version(body)
        return await _search_image(request, from_base64(body["image"], "image"), query)
    backend = backend_of(request, "vector")
    version = optional(name_from, body.get("version"), "version")
    vector = vector_from(body["vector"])
    if query.min_version is not None or query.min_seq is not None:
        await backend.wait_for(query)
    return reply(answer_json(await backend.search_vectors(vector[None], version, query), query))


async def _search_image(request: Request, image: bytes, query: Query) -> Response:
    backend = backend_of(request, "image")
    await backend.wait_for(query)
    return reply(answer_json(await backend.search_images([image], query), query))


@router.post(
    "/search/batch", openapi_extra=BATCH_BODY, response_class=Response, summary="Many queries at once"
)
async def search_batch(request: Request) -> Response:
    """Many vectors (lists, or packed as base64) or many base64 images; all are answered by one snapshot."""
    if media_type(request) != "application/json":
        raise unsupported(media_type(request) or "a body without Content-Type", "application/json")
    body = await json_object(request)
    options = options_of(request)
    known_keys(body, _MANY)
    query = query_from_json(body, options.max_k)
    if ("vectors" in body) == ("images" in body):
        raise unprocessable(
            "bad_query", "the batch has neither or both of vectors and images", "send one of them"
        )
    backend = backend_of(request, "batch")
    await backend.wait_for(query)
    if "images" in body:
        _no_version(body)
        answer = await backend.search_images(_images(body["images"], options.max_batch), query)
    else:
        version = optional(name_from, body.get("version"), "version")
        answer = await backend.search_vectors(
            vectors_from(body["vectors"], options.max_batch), version, query
        )
    results = [hits_json(hits, query) for hits in answer.hits]
    return reply({"version": answer.version, "sequence": answer.sequence, "results": results})


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
