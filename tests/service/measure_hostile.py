"""A thousand requests that nobody should send, over sockets to the real service behind its proxy.

`python -m benchmarks.serving --only hostile` runs this as a command and keeps its figures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx

from stream_odml.cluster.runtime import free_port, ray_session
from stream_odml.config.service import ServiceOptions
from tests.measured import Measured, measure_each_seed
from tests.service.hostile import LEAKS, hostile_requests
from tests.service.tiny_stream import SPEC, TinyStream

COUNT, TOKEN, MAX_BYTES = 1000, "benchmark-token", 200_000


def measure_hostile(report: Measured, seed: int) -> None:
    """Each must get one of its right statuses, in the three fields of an error, without a path or a trace."""
    with tempfile.TemporaryDirectory() as folder, ray_session(None, cpus=2):
        from stream_odml.cluster.serve import start_service, stop_service

        token = Path(folder) / "token"
        token.write_text(TOKEN)
        stream = TinyStream(Path(folder))
        first, *_ = stream.land("first", ["a", "b", "c"])
        options = ServiceOptions(
            port=free_port(), num_cpus=0.5, token_file=token, max_body_bytes=MAX_BYTES, body_timeout_s=1.0
        )
        url = start_service(stream.root, options)
        wrong = 0
        with httpx.Client(base_url=url, timeout=20) as client:
            for request in report.track(
                hostile_requests(seed, COUNT, TOKEN, MAX_BYTES, SPEC.dim), "hostile requests"
            ):
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
                json={"vector": stream.vectors([first])[0].tolist(), "k": 1},
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
        stop_service()
        stream.close()
    report.figure("hostile_requests", float(COUNT))
    report.figure("hostile_wrong", float(wrong + (alive.status_code != 200)))


if __name__ == "__main__":
    measure_each_seed("hostile", __doc__, measure_hostile)
