"""The real app over a stream root under plain uvicorn: what the attacks of `benchmarks.serving.attacks` meet first.

python -m benchmarks.serving.attacked ROOT PORT
"""

from __future__ import annotations

import gc
import resource
import sys

import torch
import uvicorn

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica


def main() -> None:
    """Serve ROOT on PORT of the loopback until the process is ended."""
    root, port = sys.argv[1], int(sys.argv[2])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    torch.set_num_threads(1)
    sys.setswitchinterval(0.0005)
    options = ServiceOptions(port=port)
    replica = Replica(root, options)
    replica.start()
    gc.collect()
    gc.freeze()
    app = create_app(replica, options, replica.metrics)
    # httptools parses every request of a connection that it has read, however many: h11 one after the other.
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", access_log=False, http="h11")


if __name__ == "__main__":
    main()
