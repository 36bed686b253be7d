"""A local S3 server (moto) for tests and benchmarks; tests/s3-server.txt says how to get one.

As a command, `python -m tests.ingest.s3_server BUCKET`, it makes a bucket, prints its port and its storage options
as JSON (null when there is no server), and serves until it is terminated.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

SERVER = os.environ.get("STREAM_ODML_MOTO_SERVER") or shutil.which("moto_server")
START_S = 600.0
NOT_CHECKED = "NOT CHECKED: no S3 server; tests/s3-server.txt says how to get one"


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Run one on a free port. Raises TimeoutError when it does not answer."""
    assert SERVER is not None, NOT_CHECKED
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [SERVER, "-H", "127.0.0.1", "-p", str(port)]
    silent = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=True) as child:
        try:
            _wait(port, child)
            yield port
        finally:
            child.terminate()


def make_bucket(port: int, name: str) -> None:
    """Make an empty bucket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("PUT", f"/{name}")
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"the S3 server answered {answer.status} {answer.reason}")


def s3_options(port: int) -> dict[str, str]:
    """Storage options of the server, or of a proxy before it."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }


def _wait(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while child.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{SERVER} did not answer within {START_S:.0f} s, exit code {child.poll()}")


def main(bucket: str) -> None:
    """Serve a bucket until terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if SERVER is None:
        print("null", flush=True)
        print(NOT_CHECKED, file=sys.stderr)
        return
    with s3_server() as port:
        make_bucket(port, bucket)
        print(json.dumps({"port": port, "options": s3_options(port)}), flush=True)
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
