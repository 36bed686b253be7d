"""The page and the offline description of the API: fixed files of the package, named one by one."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_odml.service.errors import not_found
from stream_odml.service.guard import KIND

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).resolve().parent.parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
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


@lru_cache
def _assets() -> dict[str, tuple[bytes, str, str]]:
    """Return every servable file: bytes, media type, entity tag. Names outside this table cannot be asked for."""
    found = {}
    for path in FOLDER.iterdir():
        if path.suffix in _TYPES:
            data = path.read_bytes()
            found[path.name] = (data, _TYPES[path.suffix], f'"{sha256(data).hexdigest()[:16]}"')
    return found


def _asset(name: str, request: Request) -> Response:
    request.scope[KIND] = "page"
    if name not in _assets():
        raise not_found("not_found", "there is no such file")
    data, kind, tag = _assets()[name]
    headers = {**_HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=f"{kind}; charset=utf-8", headers=headers)


@router.get("/")
async def page(request: Request) -> Response:
    return _asset("index.html", request)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Serve the API documentation from this server alone; FastAPI's own loads its scripts from a public host."""
    return _asset("docs.html", request)


@router.get("/page/{name}")
async def asset(name: str, request: Request) -> Response:
    return _asset(name, request)
