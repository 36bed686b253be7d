"""Is it alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from stream_odml.observe.plain import plain
from stream_odml.service.errors import unavailable
from stream_odml.service.replies import backend_of, reply

router = APIRouter(tags=["health"], default_response_class=Response)


@router.get("/healthz", summary="Alive")
async def healthz(request: Request) -> Response:
    """Return 200 while the process answers; says nothing about its data."""
    backend_of(request, "probe")
    return reply({"status": "ok"})


@router.get("/readyz", summary="Ready to answer queries")
async def readyz(request: Request) -> Response:
    """Return 200 once a version is served and the store was seen not too long ago; else 503 with the reason."""
    backend = backend_of(request, "probe")
    reason = backend.ready()
    if reason is not None:
        raise unavailable("not_ready", reason)
    served = backend.served()
    return reply({"status": "ready", "version": served.version, "sequence": served.sequence})


@router.get("/v1/status", summary="What is served, and how far behind the stream it is")
async def status(request: Request) -> Response:
    """Return the served version, sizes, lag and queues; works while the driver is away."""
    backend = backend_of(request, "status")
    return reply({**plain(backend.served()), **plain(await backend.status())})


@router.get("/metrics", summary="Metrics of the replica that answered")
async def metrics(request: Request) -> Response:
    """Return Prometheus text. With several replicas, scrape each one's own exporter instead (file_sd in metrics/)."""
    return Response(backend_of(request, "metrics").metrics_text(), media_type=CONTENT_TYPE_LATEST)
