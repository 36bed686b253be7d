"""A thousand requests that nobody should send, over sockets to the real service behind its proxy."""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx

from benchmarks.common import Report
from benchmarks.serving.roots import MadeRoot
from stream_odml.cluster.runtime import free_port, ray_session
from stream_odml.config.service import ServiceOptions
from tests.service.hostile import LEAKS, hostile_requests

COUNT, DIM, TOKEN, MOST_BYTES = 1000, 8, "benchmark-token", 200_000


def measure_hostile(report: Report, seed: int) -> None:
    """Each must get one of its right statuses, in the three fields of an error, without a path or a trace."""
    with tempfile.TemporaryDirectory() as folder, ray_session(None, cpus=2):
        from stream_odml.cluster.serve import start_service, stop_service

        token = Path(folder) / "token"
        token.write_text(TOKEN)
        root = MadeRoot(f"{folder}/root", DIM, seed)
        vectors = root.vectors(200)
        root.ingest(vectors)
        options = ServiceOptions(
            port=free_port(), num_cpus=0.5, token_file=token, max_body_bytes=MOST_BYTES, body_timeout_s=1.0
        )
        url = start_service(root.uri, options)
        wrong = 0
        with httpx.Client(base_url=url, timeout=20) as client:
            for request in report.track(hostile_requests(seed, COUNT, TOKEN, MOST_BYTES), "hostile requests"):
                try:
                    answer = client.request(
                        request.method, request.path, content=request.body, headers=request.headers
                    )
                    status, text = answer.status_code, answer.text
                except httpx.HTTPError as error:
                    status, text = 0, repr(error)
                if status not in request.allowed or any(leak in text for leak in LEAKS):
                    wrong += 1
                    report.row(
                        part="hostile", what=request.what, path=request.path, status=status, text=text[:300]
                    )
            alive = client.post(
                "/v1/search",
                json={"vector": vectors[0].tolist(), "k": 1},
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
        stop_service()
        root.close()
    report.figure("hostile_requests", float(COUNT))
    report.figure("hostile_wrong", float(wrong + (alive.status_code != 200)))
