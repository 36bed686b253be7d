"""Search by image or by vector, one query or many. The hot path: no schema library, one backend call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_odml.config.service import ServiceOptions
from stream_odml.service.backend import Answer, Question
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

ONE, MANY = ("vector", "image"), ("vectors", "images")
"""What a body asks about: one of the two."""
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
    options = options_of(request)
    if media_type(request) == "application/json":
        refuse_parameters(request)
        return await read_json(request, lambda body: _question(body, options, ONE), MAX_VECTOR_VALUES)
    images = await read_images(request)
    if len(images) != 1:
        raise bad_request(
            f"the form has {len(images)} parts named 'image'", "send one; /v1/search/batch takes more"
        )
    return _bounded(Question(images, query_from_url(request, options.max_k)))


def _question(body: dict[str, Any], options: ServiceOptions, subjects: tuple[str, str]) -> Question:
    """Read a question about the vector or the image of `subjects`, or about many of either."""
    vector, image = subjects
    known_keys(body, QUERY_KEYS.union(subjects, ("version",)))
    query = query_from_json(body, options.max_k)
    if (vector in body) == (image in body):
        what = "query" if subjects is ONE else "batch"
        raise unprocessable(
            "bad_query", f"the {what} has neither or both of {vector} and {image}", "send one of them"
        )
    if image in body:
        if body.get("version") is not None:
            raise unprocessable(
                "bad_query", "version belongs to vectors", "images are embedded by the served version"
            )
        given = [body[image]] if subjects is ONE else _batch(body[image], options.max_batch)
        return _bounded(Question([from_base64(one, "image") for one in given], query))
    vectors = (
        vector_from(body[vector])[None] if subjects is ONE else vectors_from(body[vector], options.max_batch)
    )
    return _bounded(Question(vectors, query, optional_name(body.get("version"), "version")))


def _batch(images: object, limit: int) -> list[Any]:
    if not isinstance(images, list) or not 1 <= len(images) <= limit:
        raise unprocessable("bad_batch", "images is no list of a size allowed", f"send 1 to {limit} images")
    return images


def _bounded(question: Question) -> Question:
    """Raise ApiError 422 for more hits in all than an answer may have."""
    query = question.query
    hits = len(question.subject) * query.k * (query.group_size if query.group_by_class else 1)
    if hits > MAX_HITS:
        raise unprocessable(
            "too_many_hits", f"{hits} hits are asked for", f"ask for at most {MAX_HITS} in one request"
        )
    return question


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
    question = await read_json(request, lambda body: _question(body, options, MANY))
    backend, query = backend_of(request, "batch"), question.query
    await backend.wait_for(query)
    answer = await backend.search(question)

    def build() -> dict[str, Any]:
        results = [hits_json(hits, query) for hits in answer.hits]
        return {"version": answer.version, "sequence": answer.sequence, "results": results}

    return await _written(request, answer, build)
