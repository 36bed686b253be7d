"""The server that ours is measured against: uvicorn, Starlette and a default flat FAISS index, nothing else.

python -m benchmarks.serving.plain VECTORS.npy PORT
"""

from __future__ import annotations

import sys
from typing import Any

import faiss as typed_faiss
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

faiss: Any = typed_faiss


def plain_app(path: str) -> Starlette:
    """POST /v1/search over the vectors [n, d] of a file."""
    vectors = np.load(path)
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    ids = [f"item/{i}" for i in range(len(vectors))]
    classes = [f"class {i // 100}" for i in range(len(vectors))]

    async def search(request: Request) -> JSONResponse:
        body = await request.json()
        scores, rows = index.search(np.asarray([body["vector"]], dtype=np.float32), body["k"])
        hits = [
            {"id": ids[row], "class": classes[row], "score": float(score)}
            for score, row in zip(scores[0], rows[0], strict=True)
        ]
        return JSONResponse({"hits": hits})

    return Starlette(routes=[Route("/v1/search", search, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(plain_app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning", access_log=False)
