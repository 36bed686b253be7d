"""What could keep a stream from running here: its root, and of the machine disks, memory, ports and packages."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
from packaging.requirements import Requirement

from stream_odml.cli.stream_root import noted_url
from stream_odml.cluster.runtime import PortTaken, check_port
from stream_odml.config.stream import StreamConfig
from stream_odml.pipeline.examining import Finding, examine_root
from stream_odml.storage.reading import scheme_of

LEAST_FREE_BYTES = 1 << 30
RAY_STOPS_AT = 0.95
"""Share of a disk above which Ray starts no task that would write to it."""
LEAST_SHARED_BYTES = 64 << 20
SHARED_SHARE = 0.3
"""Share of the memory that Ray takes for its object store."""


def examine(root: str, config: StreamConfig | None) -> Iterator[Finding]:
    """Yield all checks, of the root first."""
    yield from examine_root(root, None if config is None else config.storage_options)
    yield from _disks(root)
    yield _shared_memory()
    yield from _ports(root, config)
    yield from _packages()


def _disks(root: str) -> Iterator[Finding]:
    places = {"disk of the root": root, "disk of Ray": tempfile.gettempdir()}
    for check, place in places.items():
        if scheme_of(place) or not os.path.exists(place):
            continue
        usage = shutil.disk_usage(place)
        full = 1 - usage.free / usage.total
        free = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.0f}"
        remedy = f"free space on the disk of {place}"
        if usage.free < LEAST_FREE_BYTES:
            yield Finding(check, "failure", free, remedy)
        elif full > RAY_STOPS_AT and place != root:
            said = f"{free}: Ray writes nothing to a disk that is over {RAY_STOPS_AT:.0%} full"
            yield Finding(check, "warning", said, f"{remedy}, or set TMPDIR to another")
        else:
            yield Finding(check, "ok", free)


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "warning", "there is no /dev/shm", "mount one, or Ray uses the disk")
    usage = shutil.disk_usage(folder)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said = f"{usage.free / 1e9:.2f} GB free of {usage.total / 1e9:.2f} in /dev/shm"
    remedy = "docker run --shm-size 2g (Kubernetes: an emptyDir with medium Memory at /dev/shm)"
    if usage.free < LEAST_SHARED_BYTES:
        return Finding("shared memory", "failure", said, remedy)
    if usage.total < SHARED_SHARE * memory:
        return Finding(
            "shared memory", "warning", f"{said}: Ray's object store goes to the disk instead", remedy
        )
    return Finding("shared memory", "ok", said)


def _ports(root: str, config: StreamConfig | None) -> Iterator[Finding]:
    url = None
    with contextlib.suppress(ValueError, OSError):
        url = noted_url(root, None)
    if url is not None:
        yield _service(url)
        return
    config = config or StreamConfig(root=root)
    for setting, section in (("service.port", config.service), ("metrics.port", config.metrics)):
        where = f"{section.host}:{section.port}"
        try:
            check_port(section.host, section.port, setting)
        except PortTaken as error:
            yield Finding(
                setting, "warning", str(error), f"`{setting}: 0` in the configuration takes a free one"
            )
        else:
            yield Finding(setting, "ok", f"{where} can be listened on")


def _service(url: str) -> Finding:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5)
    except httpx.HTTPError as error:
        said = f"{url} does not answer ({type(error).__name__}), though a stream runs"
        return Finding("service", "failure", said, "look into logs/ under the root")
    if answer.is_success:
        return Finding("service", "ok", f"{url} is ready")
    return Finding(
        "service", "failure", f"{url} is not ready: {answer.text[:300]}", "look into logs/ under the root"
    )


def _packages() -> Iterator[Finding]:
    """Check the packages; ray first, as its version decides whether a running cluster can be joined."""
    wanted = [Requirement(line) for line in metadata.requires("stream-odml") or []]
    wrong = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            seen = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed, {requirement.specifier} is needed")
            continue
        fits = requirement.specifier.contains(seen, prereleases=True)
        if requirement.name == "ray":
            remedy = "" if fits else f"pip install 'ray{requirement.specifier}', on every node of a cluster"
            yield Finding(
                "Ray", "ok" if fits else "failure", f"{seen} ({requirement.specifier} is needed)", remedy
            )
        elif not fits:
            wrong.append(f"{requirement.name} {seen}, {requirement.specifier} is needed")
    if wrong:
        yield Finding("packages", "failure", "; ".join(wrong), "pip install -U stream-odml")
    else:
        yield Finding("packages", "ok", f"{len(wanted)} requirements are met")
