"""Errors as clients see them: {error, detail, remedy}. Nothing of the server (paths, traces) ever leaves."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stream_odml.store.errors import AmbiguousVersion, UnknownVersion
from stream_odml.store.versions import VersionTree

log = logging.getLogger(__name__)


class ApiError(Exception):
    """A refusal with its HTTP status, a stable `error` code, what was seen, and what to do about it."""

    def __init__(
        self, status: int, error: str, detail: str, remedy: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.error, self.detail, self.remedy = status, error, detail, remedy
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the JSON response that carries this error."""
        body = {"error": self.error, "detail": self.detail, "remedy": self.remedy}
        return JSONResponse(body, self.status, self.headers)


def bad_request(detail: str, remedy: str) -> ApiError:
    """Return error 400: the request cannot be read."""
    return ApiError(400, "bad_request", detail, remedy)


def unprocessable(error: str, detail: str, remedy: str) -> ApiError:
    """Return error 422: the request is readable, but invalid."""
    return ApiError(422, error, detail, remedy)


def not_found(error: str, detail: str, remedy: str) -> ApiError:
    """Return error 404: the item, class or version does not exist (any more)."""
    return ApiError(404, error, detail, remedy)


def version_named(tree: VersionTree, name: str) -> str | None:
    """Return the version that a client names, by its id or a beginning of it; None for one that is not there. Raises
    ApiError 422 where several begin so."""
    try:
        return tree.named(name)
    except AmbiguousVersion as error:
        raise unprocessable("ambiguous_version", str(error), "write more of its name") from None
    except UnknownVersion:
        return None


def unavailable(error: str, detail: str, retry_after_s: float = 1.0, remedy: str = "") -> ApiError:
    """Return error 503 with Retry-After: the request is valid, but cannot be answered now."""
    wait = str(max(1, math.ceil(retry_after_s)))
    return ApiError(503, error, detail, remedy or f"try again in {wait} s", {"Retry-After": wait})


def too_large(limit: int) -> ApiError:
    """Return error 413: the body is over the limit (bytes)."""
    return ApiError(
        413, "body_too_large", f"the body is larger than {limit} bytes", "send fewer or smaller images"
    )


_STATUS_WORDS = {
    404: ("not_found", "there is nothing at this address", "GET /docs lists every address"),
    405: (
        "method_not_allowed",
        "this address does not take this method",
        "the Allow header names those it takes",
    ),
}


def _as_error(raised: Exception) -> ApiError:
    if isinstance(raised, RequestValidationError):
        first = raised.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return unprocessable("invalid_parameter", f"{where}: {first['msg']}", "see /docs for what is allowed")
    if isinstance(raised, HTTPException):
        error, detail, remedy = _STATUS_WORDS.get(raised.status_code, ("http_error", str(raised.detail), ""))
        return ApiError(raised.status_code, error, detail, remedy, raised.headers)
    assert isinstance(raised, ApiError)
    return raised


def install_handlers(app: FastAPI) -> None:
    """Teach `app` to answer every known error as {error, detail, remedy}."""

    async def answer(request: Request, raised: Exception) -> Response:
        return _as_error(raised).response()

    for kind in (ApiError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer)
