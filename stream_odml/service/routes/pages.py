"""The page and the offline description of the API: fixed files of the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

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


_files = StaticFiles(directory=FOLDER)


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
    response = await _files.get_response(name, request.scope)
    response.headers.update(_HEADERS)
    return response
