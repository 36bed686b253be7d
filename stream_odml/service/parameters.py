"""The parameters of an address: each is one that its route reads, and is said once.

Protects: a misspelt parameter does not pass for none, nor the second value of one for the only one.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request

from stream_odml.service.backend import Query
from stream_odml.service.body import clipped, query_from_json
from stream_odml.service.errors import ApiError, unprocessable

_SEARCH = frozenset(
    {"k", "class", "attribute", "from", "to", "group_by", "group_size", "min_version", "min_seq"}
)


async def check_parameters(request: Request) -> None:
    """Raise ApiError 422 for a parameter that the route of this request does not read, or that comes twice."""
    if request.scope["query_string"]:
        read = request.scope["route"].dependant.query_params
        _check(request.query_params, {field.alias for field in read})


def refuse_parameters(request: Request) -> None:
    """Raise ApiError 422 where the address has parameters: the body, which is JSON, says all."""
    for name in request.query_params:
        raise unprocessable(
            "unknown_field",
            f"{clipped(name)} stands in the address of a request whose body is JSON",
            "put it into the body",
        )


def query_from_url(request: Request, max_k: int) -> Query:
    """Parse a query string: ?k=5&class=a&class=b&attribute=colour:red&from=2026-01-01T00:00:00Z. ApiError 422."""
    given = request.query_params
    pairs = [pair.partition(":") for pair in given.getlist("attribute")]
    _check(given, _SEARCH, frozenset({"class", "attribute"}))
    for number, (name, colon, _) in enumerate(pairs):
        if not colon:
            raise unprocessable(
                "bad_attributes", f"attribute {clipped(name)} has no value", "write attribute=NAME:VALUE"
            )
        if name in (other for other, _, _ in pairs[:number]):
            raise _twice(f"attribute {name}")
    body: dict[str, Any] = {key: given[key] for key in ("group_by", "min_version") if key in given}
    for key in ("k", "group_size", "min_seq"):
        if key in given:
            body[key] = _number(given[key])
    chosen: dict[str, Any] = {key: given[key] for key in ("from", "to") if key in given}
    if "class" in given:
        chosen["class"] = given.getlist("class")
    if pairs:
        chosen["attributes"] = {key: value for key, _, value in pairs}
    return query_from_json({**body, "filter": chosen}, max_k)


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else text


def _check(given: QueryParams, known: Set[str], many: Set[str] = frozenset()) -> None:
    seen: set[str] = set()
    for name, _ in given.multi_items():
        if name not in known:
            remedy = f"known parameters: {', '.join(sorted(known))}" if known else "this address takes none"
            raise unprocessable("unknown_field", f"unknown parameter {clipped(name)}", remedy)
        if name in seen and name not in many:
            raise _twice(name)
        seen.add(name)


def _twice(name: str) -> ApiError:
    return unprocessable("twice", f"{clipped(name)} comes twice in the address", "send it once")
