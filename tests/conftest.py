"""Fixtures for all rooms: the folder of real images, and loud words where it is absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Ray: else any of its calls outside a session starts one, on every interface and for good.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
RAY_CPUS = 3


@pytest.fixture(scope="session")
def ray_cpus() -> Iterator[int]:
    """Start one Ray for all tests that need no more than one, and leave it idle; its CPUs."""
    from stream_odml.cluster.runtime import ray_session

    with ray_session(None, cpus=RAY_CPUS, gpus=0):
        yield RAY_CPUS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what shares a Ray at the end: no other test meets one in its own process, nor its environment."""
    items.sort(key=lambda item: "ray_cpus" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that STREAM_ODML_DATA names; tests that need real images are skipped without it, and say so."""
    folder = Path(os.environ.get("STREAM_ODML_DATA", ""))
    if not os.environ.get("STREAM_ODML_DATA") or not (folder / "omniglot.parquet").exists():
        pytest.skip(
            "NOT CHECKED: set STREAM_ODML_DATA to the folder with omniglot.parquet and the other real images"
        )
    return folder
