"""The catalogue of hostile requests against a real replica in process: every kind gets one of its right answers."""

from __future__ import annotations

from pathlib import Path

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from tests.service.hostile import LEAKS, hostile_requests
from tests.service.local import LocalApi
from tests.service.tiny_stream import SPEC, TinyStream


def test_every_kind_gets_a_right_answer(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    options = ServiceOptions(token_file=tmp_path / "token", max_body_bytes=200_000)
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", "dog"])
    replica = Replica(stream.root, options)
    replica.start()
    seen = set()
    with LocalApi(create_app(replica, options, replica.metrics)) as api:
        for request in hostile_requests(0, 96, "secret", 200_000, SPEC.dim):
            if not isinstance(request.body, bytes):
                continue  # streams need a socket: the benchmark sends them
            answer = api.request(request.method, request.path, content=request.body, headers=request.headers)
            assert answer.status_code in request.allowed, (request.what, request.path, answer.text[:200])
            assert not any(leak in answer.text for leak in LEAKS), answer.text[:200]
            seen.add(request.what)
    replica.close()
    stream.close()
    assert len(seen) == 11
