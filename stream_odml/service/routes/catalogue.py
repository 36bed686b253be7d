"""Classes, the gallery seen as a plane, and the rows that are not in it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi import Query as UrlQuery
from starlette.responses import Response

from stream_odml.ingest.fields import normalised
from stream_odml.service.backend import MapRequest
from stream_odml.service.body import moment
from stream_odml.service.replies import backend_of, options_of, reply, row_json, view

router = APIRouter(prefix="/v1", tags=["catalogue"], default_response_class=Response)


@router.get("/classes", summary="Classes, newest first")
async def classes(
    request: Request,
    since: Annotated[
        str | None, UrlQuery(description="only classes first seen after this ISO 8601 time")
    ] = None,
    learnt: Annotated[
        bool | None, UrlQuery(description="only classes that a model has learnt, or has not")
    ] = None,
    named: Annotated[
        str | None,
        UrlQuery(max_length=256, description="only classes whose name holds this, whatever its case"),
    ] = None,
    limit: Annotated[int, UrlQuery(ge=1, le=10_000)] = 1000,
    offset: Annotated[int, UrlQuery(ge=0)] = 0,
) -> Response:
    """Return every class with its count, when it was first seen and whether a model has learnt it yet."""
    backend, after = backend_of(request, "classes"), moment(since, "since")
    part = normalised(named or "").casefold()

    def make() -> dict[str, Any]:
        table = backend.classes()
        rows = table.rows
        if after is not None:
            rows = [row for row in rows if row.first_seen is not None and row.first_seen > after]
        if learnt is not None:
            rows = [row for row in rows if row.learnt == learnt]
        if part:
            rows = [row for row in rows if part in row.name.casefold()]
        page = [row_json(row) for row in rows[offset : offset + limit]]
        return {"version": table.version, "sequence": table.sequence, "total": len(rows), "classes": page}

    return await view(request, backend, ("classes", after, learnt, part, limit, offset), limit, make)


@router.delete("/classes/{name:path}", status_code=202, summary="Forget a class")
async def forget_class(name: Annotated[str, Path()], request: Request) -> Response:
    """Ask the driver to forget a class: its items go, and its entries in the bank of every kept version."""
    return reply(await backend_of(request, "forget").forget("class", normalised(name)), 202)


@router.get("/projection", summary="The gallery in the plane")
async def projection(
    request: Request,
    points: Annotated[int | None, UrlQuery(ge=3, le=20_000, description="how many items")] = None,
    attribute: Annotated[
        str | None, UrlQuery(max_length=256, description="give each item's value of this attribute")
    ] = None,
    errors: Annotated[
        bool, UrlQuery(description="tell items whose most similar other one here is of another class")
    ] = False,
    neighbours: Annotated[
        int,
        UrlQuery(
            ge=0, le=20, description="how many of the most similar other ones here to name for each item"
        ),
    ] = 0,
    class_name: Annotated[
        str | None, UrlQuery(alias="class", max_length=256, description="items of this class alone")
    ] = None,
) -> Response:
    """Return 2-D principal components of a fixed sample, oriented alike in every version, so that a map moves smoothly,
    by what its items can be coloured, and the neighbours of each, by which the page lays them out."""
    backend, count = backend_of(request, "projection"), points or options_of(request).map_points
    only = None if class_name is None else normalised(class_name)
    asked = MapRequest(count, attribute, errors, neighbours, only)
    return await view(request, backend, ("projection", asked), asked.cost, lambda: backend.projection(asked))


@router.get("/quarantine", summary="Rows that could not be used")
async def quarantine(
    request: Request,
    limit: Annotated[int, UrlQuery(ge=1, le=1000, description="how many of the newest")] = 50,
) -> Response:
    """Return the newest rows that could not be used, each with its shard, reason, detail and remedy. All of them are
    listed by the command `quarantine`."""
    backend = backend_of(request, "quarantine")
    make = lambda: {"rows": [row_json(row) for row in backend.refused_rows(limit)]}  # noqa: E731
    return await view(request, backend, ("quarantine", limit), limit, make)
