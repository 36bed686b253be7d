"""A running stream: every process started in order, watched, and ended in reverse.

Protects: nothing is started before what could go wrong has been checked, and nothing of ours is left behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from deltalake.exceptions import DeltaError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stream_odml.cluster.actors import DRIVER_NAME
from stream_odml.cluster.driver import StreamDriver
from stream_odml.cluster.exposure import exposed_listeners
from stream_odml.cluster.exposure import log as exposure_log
from stream_odml.cluster.indexer import start_indexers
from stream_odml.cluster.jobs import check_paths
from stream_odml.cluster.placement import (
    check_batch,
    check_placement,
    check_resources,
    cluster_nodes,
    joins_cluster,
    roles,
)
from stream_odml.cluster.ray_compat import dead_head, free_orphaned_placement_groups, is_torn_progress
from stream_odml.cluster.reserved_resources import ReservedResources
from stream_odml.cluster.runtime import (
    NAMESPACE,
    ClockWentBack,
    HeadDied,
    check_port,
    free_port,
    ray_session,
    tighten_session,
)
from stream_odml.cluster.session_folder import remove_abandoned
from stream_odml.config.masking import masked_text
from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.observe.observing import TERMINAL, observe
from stream_odml.pipeline.first_version import check_place, open_root
from stream_odml.pipeline.sources import check_sources, push_path
from stream_odml.pipeline.stage_journal import open_writers
from stream_odml.storage.files import open_files
from stream_odml.storage.reading import is_remote, scheme_of
from stream_odml.store.lease import check_not_held
from stream_odml.store.store import Store
from stream_odml.wording import first_line

log = logging.getLogger(__name__)
ENDING_S = 20.0
OPENING_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
ENDED = (
    "the driver has ended for good, as it does when another run takes the stream root over; "
    "see logs/ under the root, and start the stream again if there is no other"
)


@dataclass(frozen=True)
class Endpoints:
    """Where a running stream answers. Written to the stream root, so that other commands find it."""

    service: str
    """Empty where the stream does not serve."""
    metrics: str
    host: str
    pid: int


class Session:
    """Handles of a running stream; made by `run_stream`."""

    def __init__(self, config: StreamConfig, driver: Any, indexers: list[Any], endpoints: Endpoints) -> None:
        self.config, self.driver, self.indexers, self.endpoints = config, driver, indexers, endpoints
        self._stopping = threading.Event()
        self.is_abandoned = False
        self._trainer = threading.Thread(target=self._train, name="trainer", daemon=True)
        self._reserved: ReservedResources | None = None

    def status(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return what the driver says; raises ray's GetTimeoutError or RayActorError while it is away."""
        status: dict[str, Any] = ray.get(self.driver.status.remote(), timeout=timeout_s)
        return status

    def look(self) -> dict[str, Any] | None:
        """Return `status`, or None while the driver is away; RuntimeError once it has ended for good."""
        try:
            return self.status()
        except ray.exceptions.ActorDiedError as error:  # one that restarts does not answer so
            # At once: ending Ray under a running trainer may end this process before its last words.
            log.error(ENDED)
            raise RuntimeError(ENDED) from error
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None

    @property
    def owns_ray(self) -> bool:
        """Whether Ray was started for this stream, and ends with it."""
        return not joins_cluster(self.config)

    def start_training(self) -> None:
        """Begin the long-lived training run in a thread of this process; a stream of vectors has none."""
        if self.config.model.takes_vectors:
            return
        cluster = self.config.cluster
        if cluster.min_workers is not None and cluster.min_workers < cluster.workers:
            # Just after the loss of a node Ray still counts it, and waits this long for what is not there.
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
            others = [role for role in roles(self.config) if role.name != "training"]
            self._reserved = ReservedResources(self.config.name, others)
        self._trainer.start()

    def _train(self) -> None:
        from stream_odml.cluster.trainer import build_trainer

        while not self._stopping.is_set():
            try:
                if count := free_orphaned_placement_groups():
                    log.warning("freed %d placement group(s) of a training run that was killed", count)
                build_trainer(self.config).fit()
            except Exception as error:  # the controller died, or a worker failed for good: start again
                if self._stopping.is_set():
                    return
                log.error("training ended: %s; starting it again", error)
                if is_torn_progress(error):
                    # By a kill, or of another release: it is only progress.
                    files = open_files(self.config.root, self.config.storage_options)
                    for file in list(files.list("progress")):
                        files.delete(file.path)
            self._stopping.wait(2.0)

    def abandon(self) -> None:
        """Keep the trainer from being started again, and do no more: nobody is left to talk to."""
        self.is_abandoned = True
        self._stopping.set()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Drain the driver, let the trainer return, give the root back."""
        self._stopping.set()
        try:
            ray.get(self.driver.drain.remote(), timeout=timeout_s)
        except ray.exceptions.ActorDiedError:
            timeout_s = 1.0  # ended for good: nobody tells the trainer to return
        except ray.exceptions.RayError:
            pass
        if self._trainer.is_alive():
            self._trainer.join(timeout=timeout_s)
        if self._reserved is not None:
            self._reserved.release()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.driver.close.remote(), timeout=timeout_s)


@contextlib.contextmanager
def run_stream(config: StreamConfig, takeover: bool = False) -> Iterator[Session]:
    """Start a stream and end it when the block ends. Raises ConfigError, RootBusy, PortTaken, ClusterTooSmall before
    anything of the stream has run, HeadDied when Ray ended under it."""
    config = prepare(config, takeover)
    cluster = config.cluster
    observe(config, TERMINAL)
    if opened := exposed_listeners(config, is_local=not joins_cluster(config)):
        exposure_log.warning(opened)
    gpus = None if cluster.gpus_per_worker or cluster.gpus_per_indexer else 0
    log_dir = None if scheme_of(config.root) else Path(config.root) / "logs"
    with ray_session(cluster.address, cpus=cluster.cpus, gpus=gpus, log_dir=log_dir):
        for unit in ("CPU", "GPU"):
            check_resources(roles(config), ray.cluster_resources().get(unit, 0.0), unit)
        check_placement(roles(config, cluster.min_workers), cluster_nodes())
        _check_alone()
        indexers = start_indexers(config)
        driver = _start_driver(config, takeover)
        service = f"http://{config.service.host}:{config.service.port}" if cluster.serve else ""
        metrics = f"http://{ray.get(driver.status.remote())['metrics_address']}/metrics"
        endpoints = Endpoints(service, metrics, platform.node(), os.getpid())
        session = Session(config, driver, indexers, endpoints)
        try:
            session.start_training()
            if cluster.serve:
                from stream_odml.cluster.serve import start_service

                # A filter: Serve sets the level of its logger anew when it starts.
                logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
                start_service(config.root, config.service, config.storage_options)
                tighten_session()
            noted = {**asdict(session.endpoints), "time": time.time()}
            open_files(config.root, config.storage_options).write(
                "endpoints.json", json.dumps(noted).encode()
            )
            yield session
        except ClockWentBack:
            session.abandon()
            raise
        finally:
            if dead := dead_head():
                session.abandon()
                raise HeadDied(f"Ray's {' and '.join(dead)} ended; the same command goes on from here")
            if not session.is_abandoned:
                session.stop()
            if cluster.serve and not session.owns_ray:
                from stream_odml.cluster.serve import stop_service

                stop_service(Store.id_of(config.root, config.storage_options))
            with contextlib.suppress(OSError):
                open_files(config.root, config.storage_options).delete("endpoints.json")


def prepare(config: StreamConfig, takeover: bool = False) -> StreamConfig:
    """Check all that can be checked without Ray, make the stream root, and settle port 0 and relative paths."""
    remove_abandoned()
    check_place(config.root)
    if not takeover and not is_remote(config.root):  # before the ports, which the run that holds it has
        check_not_held(open_files(config.root))
    check_port(config.service.host, config.service.port, "service.port")
    check_port(config.metrics.host, config.metrics.port, "metrics.port")
    check_batch(config)
    open_writers(config)
    if not joins_cluster(config):
        check_resources(roles(config), config.cluster.cpus or float(os.cpu_count() or 1))
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):  # a job's working directory ends with the job
        check_paths(config)
    if not scheme_of(config.root):
        config = config.model_copy(update={"root": str(Path(config.root).absolute())})
    port = config.service.port or free_port(config.service.host)
    service = config.service.model_copy(
        update={"port": port, "push_dir": push_path(config), "namespace": NAMESPACE}
    )
    config = config.model_copy(update={"service": service})
    config = _make_root(config, takeover)
    check_sources(config)
    return config


def _make_root(config: StreamConfig, takeover: bool) -> StreamConfig:
    """Create the tables and the initial model where there are none; fails early if another run holds the root. Return
    the configuration with the head that the root was made with. An object store may be busy, or lose the answer to a
    commit: it is asked again. Every part is safe to repeat."""
    pauses = list(OPENING_PAUSES_S) if is_remote(config.root) else []
    while True:
        try:
            return open_root(config, takeover)
        except (OSError, DeltaError) as error:
            if not pauses:
                raise ConfigError(
                    f"the stream root {config.root} cannot be used ({first_line(error)}); "
                    "make it readable and writable, or change `root`"
                ) from error
            log.warning(
                "the stream root %s cannot be opened yet: %s",
                masked_text(config.root),
                masked_text(first_line(error)),
            )
            time.sleep(pauses.pop(0))


def _check_alone() -> None:
    """Raise ConfigError where a stream runs: its actors are found by their names. One that is ending is waited for."""
    deadline = time.monotonic() + ENDING_S
    while True:
        try:
            ray.get_actor(DRIVER_NAME, namespace=NAMESPACE)
        except ValueError:
            return
        if time.monotonic() > deadline:
            raise ConfigError(
                "another stream runs on this Ray cluster; stop it (`stream-odml stop JOB`), or give this one a "
                "cluster of its own"
            )
        time.sleep(0.5)


def _start_driver(config: StreamConfig, takeover: bool) -> Any:
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=16)(StreamDriver)
    # On this node, without which the command ends, too: its metrics answer where they are said to, and the loss of
    # another node does not touch it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = actor.options(name=DRIVER_NAME, namespace=NAMESPACE, scheduling_strategy=here)
    return options.remote(config.model_dump_json(), takeover)
