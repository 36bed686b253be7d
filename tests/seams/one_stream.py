"""Serves one stream root as `run` does, in a process of its own: `python -m tests.seams.one_stream ROOT PORT`.

Prints one line of JSON once it answers, and ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys

from stream_odml.cluster import haproxy_config
from stream_odml.cluster.runtime import ray_session, tighten_session
from stream_odml.cluster.serve import start_service
from stream_odml.config.service import ServiceOptions
from stream_odml.store.store import Store


def main(root: str, port: str) -> None:
    options = ServiceOptions(port=int(port), num_cpus=0.1, poll_s=0.05, metrics_ports=(0, 0))
    with ray_session(None, cpus=1):
        url = start_service(root, options)
        tighten_session()
        reported = {
            "url": url,
            "pid": os.getpid(),
            "stream": Store.id_of(root),
            "folder": os.environ[haproxy_config.SESSION_VARIABLE],
            "gcs": __import__("ray").get_runtime_context().gcs_address,
        }
        print(json.dumps(reported), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
