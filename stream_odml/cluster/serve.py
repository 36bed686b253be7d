"""The service on Ray Serve: each replica pulls what is committed; nothing is ever pushed to it or redeployed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import ray
import ray.util
import torch
from fastapi import FastAPI

from stream_odml.cluster.actors import DRIVER_NAME
from stream_odml.cluster.haproxy_config import LOOPBACK, SESSION_VARIABLE, front_bounds, serve_host
from stream_odml.cluster.ray_compat import keep_replica_on_loopback
from stream_odml.config.service import ServiceOptions
from stream_odml.config.stream import load_config
from stream_odml.observe.logs import join_serve_log
from stream_odml.observe.targets import targets_folder
from stream_odml.service.access import STREAM_HEADER
from stream_odml.service.api import create_app
from stream_odml.service.backend import Driver, driver_away, refusal
from stream_odml.service.metrics import Exporter
from stream_odml.service.replica import Replica
from stream_odml.store.store import Store
from stream_odml.wording import last_line

log = logging.getLogger(__name__)

APPLICATION = "stream_odml"
DEPLOYMENT = "search"
START_TIMEOUT_S = 120.0
SERVE_LOGS = "logs/serve/ under the root, or the Serve logs of the cluster"
SWITCH_S = 0.0005


class ServiceDown(RuntimeError):
    """The service did not come up, or not in time."""


class RayDriver(Driver):
    """The named actor, looked up at every call: it may have been restarted by another process, and on a cluster
    where several streams come and go it may be another stream's, which is asked for nothing."""

    def __init__(self, namespace: str, timeout_s: float, stream_id: Callable[[], str | None]) -> None:
        self._namespace, self._timeout_s, self._stream_id = namespace, timeout_s, stream_id

    async def _call(self, method: str, *arguments: Any) -> Mapping[str, Any]:
        try:  # looking up a name is a blocking round trip to the head node
            actor = await asyncio.to_thread(ray.get_actor, DRIVER_NAME, self._namespace)
            async with asyncio.timeout(self._timeout_s):
                if await actor.stream_id.remote() != self._stream_id():
                    raise driver_away()
                answer: Mapping[str, Any] = await getattr(actor, method).remote(*arguments)
                return answer
        except ray.exceptions.RayTaskError as error:
            raise refusal(error.cause) from None
        except (ValueError, ray.exceptions.RayError, TimeoutError):
            raise driver_away() from None


class SearchService:
    """One Serve replica. Sessions, sockets and files end with it."""

    def __init__(self, root: str, options: str, storage_options: dict[str, str] | None) -> None:
        """`options` is a `ServiceOptions` as JSON."""
        from ray import serve

        join_serve_log()
        if SESSION_VARIABLE in os.environ:
            keep_replica_on_loopback(LOOPBACK)
        self._options = ServiceOptions.model_validate_json(options)
        _share_the_core(self._options.search_threads)
        name = str(serve.get_replica_context().replica_id.unique_id)
        timeout_s = self._options.timeout_s / 2
        driver = RayDriver(self._options.namespace, timeout_s, lambda: self._replica.stream_id())
        self._replica = Replica(root, self._options, driver, storage_options, name)
        self._replica.start()
        gc.collect()
        gc.freeze()  # what is loaded stays: each look through all of it would hold up every request
        self._exporter = Exporter(
            self._replica.metrics,
            name,
            self._options,
            folder=targets_folder(root, self._options.metrics_dir),
            node_address=ray.util.get_node_ip_address(),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._replica, self._options, self._replica.metrics)

    def check_health(self) -> None:
        """Raise if Serve, which calls this, should restart the replica: not for a store that is away, as a
        new one has none."""
        if not self._replica.puller.alive:
            raise RuntimeError("the thread that follows the store has ended")

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # __init__ did not get so far
            self._exporter.close()
        with contextlib.suppress(AttributeError):
            self._replica.close()


def _share_the_core(threads: int) -> None:
    """Let the loop that answers have its core: libraries do not spread over others, and the thread that builds the
    next bundle gives the interpreter's lock back ten times as soon as it would by itself."""
    torch.set_num_threads(1)
    pa.set_cpu_count(threads)
    pa.set_memory_pool(pa.system_memory_pool())  # a second allocator would keep free pages of its own
    sys.setswitchinterval(SWITCH_S)


def build_app(root: str, options: ServiceOptions, storage_options: dict[str, str] | None = None) -> Any:
    """Return the `serve.Application` over `root`, to be run by `start_service` or from a Serve config."""
    from ray import serve

    options.tokens()  # says now, not in a replica's log, that a token file is missing
    deployment = serve.deployment(
        serve.ingress()(SearchService),
        name=DEPLOYMENT,
        num_replicas=options.replicas,
        # The replica's own bounds answer first, in our words; this one is behind them. For Serve a request whose body
        # still arrives is ongoing, so that a few slow clients would take a smaller number from all others.
        max_ongoing_requests=2 * options.max_ongoing_requests + 2 * options.max_arriving,
        health_check_period_s=options.health_check_period_s,
        health_check_timeout_s=options.health_check_timeout_s,
        graceful_shutdown_timeout_s=options.timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={
            "num_cpus": options.num_cpus,
            "label_selector": dict(options.labels) or None,
            # glibc's heap for each thread keeps free pages of its own, which add up over many small answers.
            "runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "1"}},
        },
        # The replica counts its requests; a formatted line for each costs more than the search of a small gallery.
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return deployment.bind(root, options.model_dump_json(), storage_options)


def build(args: dict[str, str]) -> Any:
    """Return the application for a Serve config file, which has host and port. `args` is `{"config": path of the
    stream's YAML file}`. Raises ConfigError for a file that cannot be used, ValueError for other arguments."""
    if set(args) != {"config"}:
        raise ValueError(f"arguments of the application are {sorted(args)}; give `config: stream.yaml` alone")
    config = load_config(Path(args["config"]))
    return build_app(config.root, config.service, config.storage_options)


def start_service(root: str, options: ServiceOptions, storage_options: dict[str, str] | None = None) -> str:
    """Run the service on the Ray session of this process and return its URL once its own replica answers queries.
    Raises ServiceDown after `START_TIMEOUT_S` or when another stream answers there, ValueError for a token file that
    cannot be read."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    app = build_app(root, options, storage_options)
    stream_id = Store.id_of(root, storage_options)
    url = f"http://{'127.0.0.1' if options.host == '0.0.0.0' else options.host}:{options.port}"
    # On a shared cluster, `serve.run` would replace the service of another stream.
    with contextlib.suppress(httpx.HTTPError):
        _answer(url, "healthz", stream_id)
    bounds = front_bounds(options.header_timeout_s, options.max_connections_per_peer)
    serve.start(http_options=HTTPOptions(host=serve_host(options.host, bounds), port=options.port))
    _deploy(app, f"{APPLICATION}-{stream_id}")
    _wait_until_ready(url, stream_id, START_TIMEOUT_S)
    return url


def _deploy(app: Any, name: str) -> None:
    """Raise ServiceDown with the reason of a replica that failed: Serve's own error names only the deployment."""
    from ray import serve

    try:
        serve.run(app, name=name, route_prefix="/")
    except RuntimeError as error:
        reason = str(error)
        with contextlib.suppress(Exception):  # whatever is raised by asking a controller that may be down
            reason = last_line(serve.status().applications[name].deployments[DEPLOYMENT].message, reason)
        raise ServiceDown(f"the search service did not start: {reason}; see {SERVE_LOGS}") from error


def stop_service(stream_id: str | None = None) -> None:
    """End the service of the stream, by default of any; Serve itself too, unless it serves another application."""
    from ray import serve

    running = set(serve.status().applications)
    own = {name for name in running if name.startswith(f"{APPLICATION}-{stream_id or ''}")}
    if own == running:
        serve.shutdown()
        return
    for name in own:
        serve.delete(name)


def _wait_until_ready(url: str, stream_id: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    seen = "no answer"
    while time.monotonic() < deadline:
        try:
            answer = _answer(url, "readyz", stream_id)
            if answer.is_success and STREAM_HEADER in answer.headers:
                return
            seen = f"HTTP {answer.status_code}"
        except httpx.HTTPError as error:
            seen = str(error)
        time.sleep(0.1)
    raise ServiceDown(f"{url} was not ready within {timeout_s:g} s ({seen}); see {SERVE_LOGS} for the reason")


def _answer(url: str, path: str, stream_id: str) -> httpx.Response:
    answer = httpx.get(f"{url}/{path}", timeout=5, trust_env=False)
    found = answer.headers.get(STREAM_HEADER)
    if found not in (None, stream_id):
        raise ServiceDown(
            f"at {url} stream {found} answers, not {stream_id}; stop that one, give this one another "
            "`service.port`, or a Ray cluster of its own"
        )
    return answer
