"""The page and the offline description of the API: fixed files of the package."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from stream_odml.service.guard import KIND

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).resolve().parent.parent / "page"
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


_files = _Files(directory=FOLDER)


@router.get("/")
async def page(request: Request) -> Response:
    return await asset("index.html", request)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Serve the API documentation from this server alone; FastAPI's own loads its scripts from a public host."""
    return await asset("docs.html", request)


@router.get("/page/{name}")
async def asset(name: str, request: Request) -> Response:
    request.scope[KIND] = "page"
    return await _files.get_response(name, request.scope)
