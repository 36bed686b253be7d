"""Search by image or by vector, one query or many. The hot path: no schema library, one backend call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_odml.config.service import ServiceOptions
from stream_odml.service.backend import Answer, Query, Question
from stream_odml.service.body import (
    MAX_VECTOR_VALUES,
    QUERY_KEYS,
    from_base64,
    known_keys,
    media_type,
    only_json,
    optional_name,
    query_from_json,
    read_images,
    read_json,
    vector_from,
    vectors_from,
)
from stream_odml.service.errors import bad_request, unprocessable
from stream_odml.service.openapi import BATCH_BODY, SEARCH_BODY
from stream_odml.service.parameters import query_from_url, refuse_parameters
from stream_odml.service.pool import ShortestFirst
from stream_odml.service.replies import answer_json, backend_of, hits_json, options_of, reply

router = APIRouter(prefix="/v1", tags=["search"], default_response_class=Response)

_ONE = QUERY_KEYS | {"vector", "image", "version"}
_MANY = QUERY_KEYS | {"vectors", "images", "version"}
MAX_HITS = 100_000
"""Hits of one answer, over all its queries."""
FEW_HITS = 500
"""Hits whose JSON is written in less time than a thread takes to be handed them."""
BYTES_PER_HIT = 200


@router.post("/search", openapi_extra=SEARCH_BODY, summary="Nearest items")
async def search(request: Request) -> Response:
    """Find the nearest items of one image (raw bytes, multipart or base64) or one vector; filters,
    grouping by class."""
    question = await _one_question(request)
    query = question.query
    backend = backend_of(request, "vector" if isinstance(question.subject, np.ndarray) else "image")
    await backend.wait_for(query)
    answer = await backend.search(question)
    return await _written(request, answer, lambda: answer_json(answer, query))


async def _one_question(request: Request) -> Question:
    max_k = options_of(request).max_k
    if media_type(request) == "application/json":
        refuse_parameters(request)
        return await read_json(request, lambda body: _one(body, max_k), MAX_VECTOR_VALUES)
    images = await read_images(request)
    if len(images) != 1:
        raise bad_request(
            f"the form has {len(images)} parts named 'image'", "send one; /v1/search/batch takes more"
        )
    return Question(images, query_from_url(request, max_k))


def _one(body: dict[str, Any], max_k: int) -> Question:
    known_keys(body, _ONE)
    query = _bounded(query_from_json(body, max_k), 1)
    if ("vector" in body) == ("image" in body):
        raise unprocessable(
            "bad_query", "the query has neither or both of vector and image", "send one of them"
        )
    if "image" in body:
        _no_version(body)
        return Question([from_base64(body["image"], "image")], query)
    version = optional_name(body.get("version"), "version")
    return Question(vector_from(body["vector"])[None], query, version)


def _bounded(query: Query, count: int) -> Query:
    """Raise ApiError 422 for more hits in all than an answer may have."""
    hits = count * query.k * (query.group_size if query.group_by_class else 1)
    if hits > MAX_HITS:
        raise unprocessable(
            "too_many_hits", f"{hits} hits are asked for", f"ask for at most {MAX_HITS} in one request"
        )
    return query


async def _written(request: Request, answer: Answer, build: Callable[[], dict[str, Any]]) -> Response:
    """Write a long answer on a thread: its JSON takes the event loop from everybody else."""
    count = sum(map(len, answer.hits))
    if count <= FEW_HITS:
        return reply(build())
    pool: ShortestFirst = request.app.state.parsing
    return await pool.run(count * BYTES_PER_HIT, lambda: reply(build()))


@router.post("/search/batch", openapi_extra=BATCH_BODY, summary="Many queries at once")
async def search_batch(request: Request) -> Response:
    """Search by many vectors (lists, or packed as base64) or many base64 images; all are answered by one snapshot."""
    only_json(request)
    refuse_parameters(request)
    options = options_of(request)
    question = await read_json(request, lambda body: _many(body, options))
    backend, query = backend_of(request, "batch"), question.query
    await backend.wait_for(query)
    answer = await backend.search(question)

    def build() -> dict[str, Any]:
        results = [hits_json(hits, query) for hits in answer.hits]
        return {"version": answer.version, "sequence": answer.sequence, "results": results}

    return await _written(request, answer, build)


def _many(body: dict[str, Any], options: ServiceOptions) -> Question:
    known_keys(body, _MANY)
    query = query_from_json(body, options.max_k)
    if ("vectors" in body) == ("images" in body):
        raise unprocessable(
            "bad_query", "the batch has neither or both of vectors and images", "send one of them"
        )
    if "images" in body:
        _no_version(body)
        images = _images(body["images"], options.max_batch)
        return Question(images, _bounded(query, len(images)))
    version = optional_name(body.get("version"), "version")
    vectors = vectors_from(body["vectors"], options.max_batch)
    return Question(vectors, _bounded(query, len(vectors)), version)


def _images(value: object, limit: int) -> list[bytes]:
    if not isinstance(value, list) or not 1 <= len(value) <= limit:
        raise unprocessable("bad_batch", "images is no list of a size allowed", f"send 1 to {limit} images")
    return [from_base64(one, "image") for one in value]


def _no_version(body: dict[str, Any]) -> None:
    if body.get("version") is not None:
        raise unprocessable(
            "bad_query", "version belongs to vectors", "images are embedded by the served version"
        )
