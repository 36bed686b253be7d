"""For clients that keep vectors of their own: what the served model gives for images, and the map between versions."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi import Query as UrlQuery
from starlette.responses import Response

from stream_odml.service.body import check_count, from_base64, known_keys, media_type, read_images, read_json
from stream_odml.service.errors import unprocessable
from stream_odml.service.openapi import EMBED_BODY, MAP_ANSWER
from stream_odml.service.replies import backend_of, options_of, reply

router = APIRouter(prefix="/v1", tags=["vectors"], default_response_class=Response)
_KEYS = frozenset({"image", "images", "packed"})


@router.post("/embed", openapi_extra=EMBED_BODY, summary="Vectors of images")
async def embed(request: Request) -> Response:
    """Return vectors of images by the served model, raw, with its version: what a search by vector takes later on.

    `packed` gives them as base64 of little-endian float32, row by row.
    """
    backend = backend_of(request, "image")
    images, packed = await _images(request)
    check_count(len(images), options_of(request).max_batch, "images in the request")
    found = await backend.embed(images)
    rows = np.ascontiguousarray(found.vectors, "<f4")
    vectors: Any = rows.tolist()
    if packed:
        vectors = {"base64": base64.b64encode(rows.tobytes()).decode(), "dim": rows.shape[1]}
    head = {"version": found.version, "sequence": found.sequence, "dim": rows.shape[1]}
    return reply({**head, "vectors": vectors})


async def _images(request: Request) -> tuple[list[bytes], bool]:
    if media_type(request) == "application/json":
        return await read_json(request, _from_json)
    return await read_images(request), False


def _from_json(body: dict[str, Any]) -> tuple[list[bytes], bool]:
    known_keys(body, _KEYS)
    packed = body.get("packed", False)
    if not isinstance(packed, bool):
        raise unprocessable("bad_packed", "packed is neither true nor false", "send true or leave it out")
    if ("image" in body) == ("images" in body):
        raise unprocessable("bad_batch", "the request has neither or both of image and images", "send one")
    images = body["images"] if "images" in body else [body["image"]]
    if not isinstance(images, list):
        raise unprocessable("bad_batch", "images is no list", "send a list of base64 images")
    return [from_base64(image, "image") for image in images], packed


@router.get("/maps", openapi_extra=MAP_ANSWER, summary="The map between versions")
async def maps(
    request: Request,
    start: Annotated[
        str, UrlQuery(alias="from", max_length=512, description="version that made the vectors")
    ],
    end: Annotated[
        str, UrlQuery(alias="to", max_length=512, description="version in whose space they are wanted")
    ] = "head",
) -> Response:
    """Return the way from one version's vectors into another's space as an npz file, to be applied by numpy alone."""
    found = await backend_of(request, "map").map_between(start, end)
    return Response(
        found.to_npz(),
        media_type="application/x-npz",
        headers={"Content-Disposition": f'attachment; filename="{found.start}-to-{found.end}.npz"'},
    )
