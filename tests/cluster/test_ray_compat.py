"""A release of Ray that moves what `ray_compat.py` leans on is named here, by the thing that moved."""

from __future__ import annotations

import importlib
import inspect
import mmap
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from stream_odml.cluster import haproxy_config, ray_compat, ray_start, runtime
from stream_odml.service import ingress

RAY = Path(ray.__file__).parent
SESSION = {
    name: value
    for name, value in {**runtime._ENVIRONMENT, **ray_start.patience()}.items()
    if name not in runtime.LEAN_MEMORY
}
NAMES = (
    "ray._private.parameter.RayParams",
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER",
    "ray._private.services.get_node_ip_address",
    "ray._private.services.get_node",
    "ray._private.node.Node.start_api_server",
    "ray.serve._private.replica.add_port_to_grpc_server",
    "ray._private.node.Node.dead_processes",
    "ray._private.node.Node.kill_all_processes",
    "ray._private.worker._global_node",
    "ray._raylet.AuthenticationTokenLoader.instance",
    "ray._raylet.AuthenticationTokenLoader.reset_cache",
    "ray._raylet.Config.initialize",
    "ray._raylet.CoreWorker.get_current_task_attempt_number",
    "ray.WORKER_MODE",
    "ray.PlacementGroupID",
    "ray.runtime_context.RuntimeContext",
    "ray.exceptions.ActorUnavailableError",
    "ray.util.placement_group.placement_group_table",
    "ray.train.v2._internal.exceptions.CheckpointManagerInitializationError",
    "ray.train.torch.config._TorchBackend.on_start",
    "ray.train.torch.config._set_torch_distributed_env_vars",
    "ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator.ResourceRequestPriority.HIGH",
    "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator.get_or_create_autoscaling_coordinator",
)
ARGUMENTS = (
    (
        "ray._private.parameter.RayParams",
        {
            "metrics_agent_port",
            "metrics_export_port",
            "dashboard_agent_listen_port",
            "runtime_env_agent_port",
        },
    ),
    ("ray._private.node.Node.kill_all_processes", {"check_alive"}),
    (
        "ray.train.torch.config._setup_torch_process_group",
        {"backend", "world_rank", "world_size", "init_method", "timeout_s"},
    ),
    (
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator._AutoscalingCoordinatorActor."
        "request_resources",
        {"requester_id", "resources", "expire_after_s", "priority"},
    ),
    (
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator._AutoscalingCoordinatorActor."
        "cancel_request",
        {"requester_id"},
    ),
)


def found(name: str) -> object:
    """What a dotted name means; fails with the name of the part that is not there."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            assert hasattr(thing, part), (
                f"Ray {ray.__version__} has no {name}: {part!r} is gone; see ray_compat.py"
            )
            thing = getattr(thing, part)
        return thing
    pytest.fail(f"Ray {ray.__version__} has no module of {name}; see ray_compat.py")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_where_it_was(name: str) -> None:
    found(name)


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_a_call_takes_what_it_took(name: str, arguments: set[str]) -> None:
    thing = found(name)
    taken = set(inspect.signature(thing).parameters)  # type: ignore[arg-type]
    assert arguments <= taken, (
        f"{name} of Ray {ray.__version__} takes no {arguments - taken}; see ray_compat.py"
    )


def holds(path: Path, text: str) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(text.encode()) >= 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("dashboard/modules/job/job_head.py", ray_compat.NO_JOB_AGENT),
        ("train/v2/_internal/exceptions.py", ray_compat.TORN_PROGRESS),
    ],
)
def test_an_error_says_what_it_said(path: str, words: str) -> None:
    assert holds(RAY / path, words), (
        f"{path} of Ray {ray.__version__} does not say {words!r}; see ray_compat.py"
    )


def _sources() -> Iterator[str]:
    for folder in ("_private", "serve", "train", "data", "_common"):
        for path in sorted((RAY / folder).rglob("*.py")):
            if "tests" not in path.parts:
                yield path.read_text(encoding="utf-8", errors="replace")


class Restarted:
    """Takes long to come back."""

    def __init__(self, mark: str) -> None:
        if Path(mark).exists():
            time.sleep(30)
        Path(mark).touch()

    def end(self) -> None:
        """As by SIGKILL."""
        os._exit(1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cpus")
def test_a_call_that_finds_its_actor_away_is_no_call_that_ended_it(tmp_path: Path) -> None:
    """By a real one: the words are Ray's core's, in which no string can be looked up."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(Restarted).remote(
        str(tmp_path / "mark")
    )
    with pytest.raises(ray.exceptions.RayError) as ended:
        ray.get(actor.end.remote())
    with pytest.raises(ray.exceptions.RayError) as away:
        ray.get(actor.end.remote())
    ray.kill(actor)
    assert not ray_compat.was_restarting(ended.value), ended.value
    assert ray_compat.was_restarting(away.value), (
        f"Ray {ray.__version__} says {str(away.value)!r}; see ray_compat.py"
    )


def test_every_setting_of_a_session_is_one_that_ray_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A setting that Ray renamed is obeyed by nobody, without a word."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    settings = {*SESSION, *haproxy_config.environment(tmp_path)} - {haproxy_config.SESSION_VARIABLE}
    assert all(name.startswith("RAY_") for name in settings)
    # Without a boundary before it: with one it takes ten times as long.
    known = {name for source in _sources() for name in re.findall(r"RAY_\w+", source)}
    unknown = settings - known
    # The settings of Ray's core are named in its binaries, without the prefix.
    unknown = {name for name in unknown if not holds(RAY / "_raylet.so", name.removeprefix("RAY_"))}
    assert unknown == set(), f"Ray {ray.__version__} does not know {sorted(unknown)}"


def test_serve_writes_the_sections_of_haproxy_that_are_narrowed() -> None:
    template = (RAY / "serve/_private/haproxy_templates.py").read_text()
    for section in (haproxy_config._FRONT, haproxy_config._DROPPED, haproxy_config._STATS):
        assert re.search(rf"^{section}$", template, re.M), (
            f"Serve {ray.__version__} writes no section {section!r}; see haproxy_config.py"
        )


def test_serve_knows_the_header_and_the_method_by_which_its_replica_is_made() -> None:
    header = found("ray.serve._private.constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER")
    assert header == ingress._HEADER.decode()
    assert found("ray.serve._private.replica.SERVE_BUILD_ASGI_APP_METHOD") == "__serve_build_asgi_app__"


def test_ray_listens_on_the_loopback_or_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_compat.only_loopback({}, 1.0):
        pass
    monkeypatch.setattr("ray._private.services.get_node_ip_address", lambda: "10.0.0.7")
    with pytest.raises(RuntimeError, match=r"would listen on 10\.0\.0\.7"), ray_compat.only_loopback({}, 1.0):
        pytest.fail("it would have started")


def test_asking_where_this_is_starts_no_ray() -> None:
    code = (
        "import ray\nfrom stream_odml.cluster.ray_compat import in_worker\n"
        "def started(*_, **__): raise SystemExit('a Ray was started')\n"
        "ray._private.auto_init_hook.ray.init = started\nassert not in_worker()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ENABLE_AUTO_CONNECT"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_nothing_else_in_the_package_reaches_into_ray() -> None:
    root = Path(ray_compat.__file__).parents[1]
    private = re.compile(r"\bray\.(_private|_raylet|\w+\._private|\w+\._internal|[\w.]+\._internal)\b")
    reach = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        if path.name != "ray_compat.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if private.search(line)
    ]
    assert reach == [], os.linesep.join(reach)
