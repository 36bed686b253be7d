"""The API as one ASGI app over a Backend. Knows nothing of Ray: tests and plain uvicorn run it as it is."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI

from stream_odml import __version__
from stream_odml.config.service import ServiceOptions
from stream_odml.service.access import Access
from stream_odml.service.backend import Backend
from stream_odml.service.errors import install_handlers
from stream_odml.service.guard import Guard
from stream_odml.service.metrics import ServiceMetrics
from stream_odml.service.parameters import check_parameters
from stream_odml.service.pool import ShortestFirst
from stream_odml.service.routes import catalogue, embedding, health, items, pages, search, versions
from stream_odml.store.recent import Recent

_ABOUT = (
    "Search a gallery that keeps growing, by a model that keeps learning. Every answer names the `version` "
    "of the model and the `sequence` of the store it was given by. Errors are `{error, detail, remedy}`; "
    "503 carries `Retry-After`."
)
KEPT_VIEWS = 16
"""Large answers that are kept, of at most some two megabytes each."""


def create_app(backend: Backend, options: ServiceOptions, metrics: ServiceMetrics | None = None) -> FastAPI:
    """Build the app. Raises ValueError if a token file of `options` cannot be read."""
    app = FastAPI(title="stream_odml", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None)
    app.state.backend = backend
    app.state.options = options
    app.state.parsing = ShortestFirst(1, "parse")
    app.state.viewing = ShortestFirst(1, "views")
    app.state.views = Recent(KEPT_VIEWS)
    for module in (search, health, pages):
        app.include_router(module.router)
    for router in (embedding.router, items.router, catalogue.router, versions.router, versions.tasks):
        app.include_router(router, dependencies=[Depends(check_parameters)])
    install_handlers(app)
    app.add_middleware(
        Guard,
        options=options,
        access=Access(options),
        metrics=metrics or ServiceMetrics(),
        stream_id=backend.stream_id,
        direct={"/v1/search": search.search, "/v1/search/batch": search.search_batch},
    )
    if any(options.tokens()):
        _describe_token(app)
    return app


def _describe_token(app: FastAPI) -> None:
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"}
        }
        schema["security"] = [{"token": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
