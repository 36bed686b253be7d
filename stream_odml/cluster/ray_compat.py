"""All that leans on Ray's insides, or on the words of its errors: what moves with a release of Ray is in this file.

`tests/cluster/test_ray_compat.py` names what a release has moved. Four things lean on it from elsewhere, and are
tested there too: `haproxy_config.py` (Serve's template for HAProxy; a script that may import nothing), the names of
Ray's settings in `runtime.py` and `ray_start.py`, `local_ranks.py` (how Ray Train begins a process group; it loads
torch), and `service/ingress.py` (a header of Serve's).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray._private import node, parameter, ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

ESSENTIAL_PROCESSES = ("gcs_server", "raylet")
RESTARTING = "is restarting"
NO_JOB_AGENT = "No available agent"
TORN_PROGRESS = "CheckpointManager"
LOST_PEER = "gloo"


# -- starting and ending a local session --------------------------------------------------------------------------


def reread_environment() -> None:
    """Let Ray read its settings and the token again, which it does once in a process. Leans on `ray._raylet`; without
    it a second session in a process has the ports and the token of the first."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def only_loopback(agent_ports: Mapping[str, int], patience_s: float) -> Iterator[None]:
    """Let Ray listen on the loopback, and its agents on `agent_ports`, which are named as Ray's parameters are.

    A raylet that is to learn the ports from its agents ends when these are slow, as on a busy machine.

    No head of the dashboard is started: Ray starts one, and waits for it, even where there is to be no dashboard. A
    raylet is waited for `patience_s` seconds, longer than the half minute that Ray gives it.

    Ray does so on a laptop with macOS or Windows, where it takes the machine's address for 127.0.0.1. Leans on
    `ray._private`; without it a session is open to the network: this raises RuntimeError instead.
    """

    def ported(*args: Any, **kwargs: Any) -> Any:
        return parameters(*args, **{**kwargs, **agent_ports})

    def waited_for(*args: Any) -> Any:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return get_node(*args)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    get_node, start_dashboard = services.get_node, node.Node.start_api_server
    parameters, clusters = parameter.RayParams, ray_constants.ENABLE_RAY_CLUSTER
    parameter.RayParams, ray_constants.ENABLE_RAY_CLUSTER = ported, False
    services.get_node, node.Node.start_api_server = waited_for, lambda *_, **__: None
    try:
        if (address := services.get_node_ip_address()) != "127.0.0.1":
            raise RuntimeError(
                f"Ray {ray.__version__} would listen on {address} and not on the loopback alone; install the release "
                "that stream-odml was tested with: `pip install -c constraints.txt ray`"
            )
        yield
    finally:
        parameter.RayParams, ray_constants.ENABLE_RAY_CLUSTER = parameters, clusters
        services.get_node, node.Node.start_api_server = get_node, start_dashboard


def keep_replica_on_loopback(host: str) -> None:
    """Let the gRPC server by which deployments call each other listen on `host` alone, in this replica. It would
    listen on every interface, and unpickles what it is sent without a token. Call it before Serve opens the server.
    Leans on `ray.serve._private.replica`."""
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server

    def add_host_port(server: Any, address: str) -> Any:
        return add_port(server, f"{host}:{address.rpartition(':')[2]}")

    replica.add_port_to_grpc_server = add_host_port


def dead_head() -> list[str]:
    """Return which of Ray's own processes have ended, of a session that this process started. Leans on Ray's global
    node; without it a session whose head died would hang instead of ending."""
    node = getattr(ray._private.worker, "_global_node", None)
    dead = node.dead_processes() if node is not None else []
    return [name for name, _ in dead if name in ESSENTIAL_PROCESSES]


def kill_session() -> None:
    """End all processes of a local session whose head does not answer: `ray.shutdown` would wait for a minute. Leans on
    Ray's global node."""
    ray._private.worker._global_node.kill_all_processes(check_alive=False)


def in_worker() -> bool:
    """Return whether this process is one that Ray started. Leans on the runtime context's worker. To ask for the
    context where there is no Ray would start one, on every interface."""
    return ray.is_initialized() and bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


def task_attempt() -> int:
    """Return how often Ray has run the task that this process runs now before this time."""
    return int(ray._private.worker.global_worker.core_worker.get_current_task_attempt_number())


# -- resources ----------------------------------------------------------------------------------------------------


def coordinator() -> Any:
    """Return the actor with which training runs and datasets agree on resources. Leans on Ray Data's insides; without
    it an elastic group may wait for a node that the stream's actors fill."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

    return default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


def reserve(name: str, bundles: Sequence[dict[str, float]], expire_s: float, timeout_s: float) -> None:
    """Reserve resources with the coordinator under a name, as high as a training run asks, and before it. Raises
    whatever another Ray, or a coordinator that is busy, raises."""
    from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority

    asked = coordinator().request_resources.remote(
        requester_id=name,
        resources=list(bundles),
        expire_after_s=expire_s,
        priority=ResourceRequestPriority.HIGH,
    )
    ray.get(asked, timeout=timeout_s)


def give_back(name: str, timeout_s: float) -> None:
    """Give back what `reserve` reserved."""
    ray.get(coordinator().cancel_request.remote(name), timeout=timeout_s)


def free_orphaned_placement_groups() -> int:
    """Remove the placement groups of this job, and return how many there were; call while no training run lives.

    What a killed training run leaves reserved, the next one's reads would wait for without a word, for ever. Only
    training makes any. Ray removes those of a dead actor when its job has ended, too; Ray Train's own cleaner asks
    the dashboard whether its controller lives, and a session without a dashboard never gets an answer. Leans on the
    id of a group ending with its job's.
    """
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table()
    left = [name for name, group in groups.items() if name.endswith(job) and group["state"] != "REMOVED"]
    for name in left:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
    return len(left)


# -- errors that only their words tell apart ------------------------------------------------------------------------


def was_restarting(error: BaseException) -> bool:
    """Return whether a call found its actor away already, and so had no part in its end. Ray has one error for a call
    that found the actor restarting, and for one that ended it."""
    return isinstance(error, ray.exceptions.ActorUnavailableError) and RESTARTING in str(error)


def has_no_job_agent(error: BaseException) -> bool:
    """Return whether a cluster that has just started has no agent for jobs yet: a plain RuntimeError."""
    return NO_JOB_AGENT in str(error)


def is_torn_progress(error: BaseException) -> bool:
    """Return whether Ray Train cannot read its own progress, which comes out of its controller wrapped."""
    return TORN_PROGRESS in f"{type(error).__name__} {error}"


def is_lost_peer(error: BaseException) -> bool:
    """Return whether a rank of the process group went: gloo, in torch, names it in plain RuntimeErrors only."""
    return isinstance(error, RuntimeError) and LOST_PEER in str(error).lower()
