"""Fixtures for all rooms: the folder of real images, one Ray for many tests; how tests are spread over processes."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
import typer.testing

# Before anything imports Ray: else any of its calls outside a session starts one, on every interface and for good.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: a library's threads that wait for each other spin, and take ten times what is computed.
    # Whatever the user's shell says; libraries read it when they are loaded.
    os.environ["OMP_NUM_THREADS"] = "1"
MEMORY = Path("/dev/shm")
FREE_MEMORY = 4 << 30
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > FREE_MEMORY:
    # Where `tmp_path` lies: stores sync what they write, and tests would spend a third of their time on waiting for it.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
WORKERS = 3
"""Processes of a whole run: two cores' worth, and one that mostly waits for what Ray starts."""
SHARED = {
    "pytest.mark.ray": "ray",
    "tests.ingest.s3_server import": "s3",
    "tests.killed import": "forks",
    "tests.store.crash_walk import": "forks",
    "tests.sources import": "sources",
}
"""Words of a test file, and the group that it belongs to; xdist's own marker does nothing under pytest 9.2."""
REPOSITORY = Path(__file__).resolve().parents[1]
# The tree of commands is made of signatures and their annotations, some hundred times as long as a command is parsed.
typer.main.get_command = functools.cache(typer.main.get_command)
typer.testing._get_command = typer.main.get_command  # type: ignore[attr-defined]
# Until what is imported has been left out (`pytest_collection_finish`): each look at it finds nothing.
gc.disable()
RAY_TIMEOUT_S = 900
PATIENCE_S = 300.0
RAY_CPUS = 3
_shared_ray = contextlib.ExitStack()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run folders in several processes; single files, and what is slow, in this one."""
    chosen = str(config.getoption("markexpr"))
    is_campaign = "slow" in chosen and "not slow" not in chosen
    are_files = all(str(argument).partition("::")[0].endswith(".py") for argument in config.args)
    return 0 if is_campaign or are_files else WORKERS


@pytest.fixture
def ray_cpus() -> int:
    """Start one Ray for all tests that need no more than one, and leave it idle; its CPUs."""
    import ray

    from stream_odml.cluster.runtime import ray_session

    if not ray.is_initialized():
        _shared_ray.enter_context(ray_session(None, cpus=RAY_CPUS, gpus=0))
    return RAY_CPUS


def _shares_ray(item: pytest.Item | None) -> bool:
    return "ray_cpus" in getattr(item, "fixturenames", ())


def _turn(item: pytest.Item) -> tuple[bool, ...]:
    is_ray = item.get_closest_marker("ray") is not None
    return (
        not is_ray,
        not _shares_ray(item),
        not _is_of(item, "s3"),
        not _is_of(item, "forks"),
        not item.nodeid.startswith("benchmarks/"),
    )


def _is_of(item: pytest.Item, group: str) -> bool:
    return _group_of(item.nodeid.partition("::")[0]) == group


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """End the shared Ray after the last test that takes it: no other meets one in its process or environment."""
    try:
        yield
    finally:
        if _shares_ray(item) and not _shares_ray(nextitem):
            _shared_ray.close()


def pytest_sessionfinish() -> None:
    """End the shared Ray of a run that was stopped."""
    _shared_ray.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what starts Ray first, what shares a Ray in turn, each with time for a start on a busy machine.

    Then what shares the S3 server or the process that is forked, and what is long: a group or a test that begins late
    would be waited for.
    """
    items.sort(key=_turn)
    for item in items:
        if item.get_closest_marker("ray") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(RAY_TIMEOUT_S))


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later look for garbage: it stays."""
    gc.collect()
    gc.freeze()
    gc.enable()


@functools.cache
def _group_of(path: str) -> str | None:
    """Return what the tests of a file share: Ray, an S3 server, a process to fork or parsed sources with other files,
    fixtures of the module, nothing."""
    whole = (REPOSITORY / path).read_text(encoding="utf-8")
    # What only `-m slow` runs does not count: that runs in one process.
    text = "\n\n".join(part for part in whole.split("\n\n") if "@pytest.mark.slow" not in part)
    alone = path if 'scope="module"' in text else None
    return next((group for mark, group in SHARED.items() if mark in text), alone)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each test to the process that is free, but the files of a group to one: no two sessions of Ray at once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return _group_of(nodeid.partition("::")[0]) or nodeid

    return ByGroup(config, log)


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Start one S3 server for all tests; its port."""
    from tests.ingest.s3_server import s3_server

    with s3_server() as port:
        yield port


@pytest.fixture
def bucket(s3_port: int) -> str:
    """Make an empty bucket; its address."""
    from tests.ingest.s3_server import make_bucket

    name = f"test-{uuid.uuid4().hex}"
    make_bucket(s3_port, name)
    return f"s3://{name}"


_STATES: dict[int, Any] = {}


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> None:
    """A generator that a module's tests share starts anew for each: no test meets numbers that depend on which tests
    its process ran before."""
    generator = getattr(request.module, "RNG", None)
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        bits.state = _STATES.setdefault(id(generator), bits.state)


@pytest.fixture(autouse=True, scope="session")
def patient_service() -> Iterator[None]:
    """Give requests to a service within a test's process the time that a busy machine takes, where a test sets none."""
    from stream_odml.service.guard import Guard

    begin = Guard.__init__

    def patient(self: Guard, app: Any, *, options: Any, **others: Any) -> None:
        unset = {"timeout_s", "body_timeout_s"} - options.model_fields_set
        begin(self, app, options=options.model_copy(update=dict.fromkeys(unset, PATIENCE_S)), **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "__init__", patient)
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that STREAM_ODML_DATA names; tests that need real images are skipped without it, and say so."""
    folder = Path(os.environ.get("STREAM_ODML_DATA", ""))
    if not os.environ.get("STREAM_ODML_DATA") or not (folder / "omniglot.parquet").exists():
        pytest.skip(
            "NOT CHECKED: set STREAM_ODML_DATA to the folder with omniglot.parquet and the other real images"
        )
    return folder
