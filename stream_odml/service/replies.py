"""Values into JSON, and what every route shares: the backend, the options, the kind of request for the metrics, and
large answers about one state of the gallery, which are written one at a time on a thread and kept as bytes.

Protects: who asks for all classes or for a map of the gallery, however often, takes neither the event loop nor more
than one thread from those who search.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from stream_odml.config.service import ServiceOptions
from stream_odml.observe.plain import plain
from stream_odml.search.hits import Hit
from stream_odml.service.backend import Answer, Backend, ClassRow, Item, Query, RefusedRow
from stream_odml.service.guard import KIND
from stream_odml.service.pool import ShortestFirst
from stream_odml.store.recent import Recent
from stream_odml.store.versions import Version

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def backend_of(request: Request, kind: str) -> Backend:
    """Return the backend behind `request`, which is counted as one of `kind` from here on."""
    request.scope[KIND] = kind
    return cast(Backend, request.app.state.backend)


def options_of(request: Request) -> ServiceOptions:
    """Return the options of the service."""
    return cast(ServiceOptions, request.app.state.options)


def reply(value: Mapping[str, Any], status: int = 200) -> Response:
    """Return the response whose body is `encoded(value)`."""
    return json_response(encoded(value), status)


def json_response(body: bytes, status: int = 200) -> Response:
    """Return the response of a body that is JSON already."""
    return Response(body, status, media_type="application/json")


def encoded(value: Mapping[str, Any]) -> bytes:
    """Return compact JSON. What JSON cannot hold, such as NaN or a tuple as a key, leaves in a form that it can."""
    try:
        return _ENCODER.encode(value).encode()
    except (TypeError, ValueError, RecursionError):  # rare: a look at every value would cost each answer
        return _ENCODER.encode(plain(value)).encode()


def instant(time: datetime | None) -> str | None:
    """Format a time as ISO 8601 in UTC with a Z; None stays None."""
    if time is None:
        return None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat().replace("+00:00", "Z")


def hit_json(hit: Hit) -> dict[str, Any]:
    """Return the JSON of one neighbour."""
    return {
        "id": hit.item_id,
        "class": hit.class_name,
        "score": round(hit.score, 6),
        "version": hit.version,
        "time": instant(hit.time),
        "attributes": dict(hit.attributes),
        "shard": hit.shard_id,
        "row": hit.shard_row,
    }


def hits_json(hits: Sequence[Hit], query: Query) -> dict[str, Any]:
    """Return `{"hits": [...]}`, or `{"groups": [{"class", "hits"}]}` with the best class first."""
    if not query.group_by_class:
        return {"hits": [hit_json(hit) for hit in hits[: query.k]]}
    groups: dict[str, list[dict[str, Any]]] = {}
    for hit in hits:
        members = groups.setdefault(hit.class_name, [])
        if len(members) < query.group_size:
            members.append(hit_json(hit))
    return {"groups": [{"class": name, "hits": members} for name, members in list(groups.items())[: query.k]]}


def answer_json(answer: Answer, query: Query) -> dict[str, Any]:
    """Return the answer to one query."""
    return {"version": answer.version, "sequence": answer.sequence, **hits_json(answer.hits[0], query)}


def row_json(row: ClassRow | RefusedRow) -> dict[str, Any]:
    """Return a class, or a row that could not be used."""
    fields = asdict(row)
    return {name: instant(value) if isinstance(value, datetime) else value for name, value in fields.items()}


def item_json(item: Item) -> dict[str, Any]:
    """Return one item, which has no score."""
    fields = hit_json(item.stored)
    del fields["score"]
    return {**fields, "thumbnail": item.has_thumbnail}


def version_json(row: Version) -> dict[str, Any]:
    """Return one version of the tree. What it holds of single classes is for the diff: too much for a list."""
    return {
        "id": row.version_id,
        "parent": row.parent,
        "task": row.task,
        "committed": instant(row.time),
        "retired": row.retired,
        "metrics": {key: value for key, value in row.metrics.items() if key != "recall_by_class"},
    }


async def view(
    request: Request,
    backend: Backend,
    asked: tuple[object, ...],
    cost: float,
    make: Callable[[], Mapping[str, Any]],
) -> Response:
    """Answer with `make()`, which only depends on what is served now and on what was `asked`. It is made on the thread
    unless it is kept; of those that wait the least `cost` is next."""
    served, state = backend.served(), request.app.state
    key = served.version, served.sequence, served.loaded_at, *asked
    kept: Recent[tuple[object, ...], bytes] = state.views
    viewing: ShortestFirst = state.viewing
    body = kept.find(key)
    if body is None:  # on the thread it is looked for again: another asker's turn may have come first
        body = await viewing.run(cost, kept.get, key, lambda: encoded(make()))
    return json_response(body)
