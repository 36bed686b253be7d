"""Streams that are served by processes of their own, and what the kernel says of those processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from stream_odml.cluster import haproxy_config

START_S = 600


@dataclass(frozen=True)
class Served:
    """A stream that answers at ``url``, with the folder of its session."""

    url: str
    pid: int
    stream: str
    folder: Path
    gcs: str

    def processes(self) -> dict[int, str]:
        """Pids and command lines of the session: what descends from it, and what has its variable, orphans included.

        A process that gives itself a title may overwrite its variables.
        """
        mark = f"{haproxy_config.SESSION_VARIABLE}={self.folder}".encode()
        found, parents, names = {self.pid}, {}, {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(process.name)
                names[pid] = (process / "cmdline").read_text().replace("\0", " ").strip()
                parents[pid] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {pid: names.get(pid, "") for pid in found}

    def replicas(self) -> list[int]:
        return [pid for pid, name in self.processes().items() if name.startswith("ray::ServeReplica")]

    def listeners(self) -> set[tuple[str, int, str]]:
        """(address, port, process) of every TCP socket of the session that listens."""
        listening = _listening()
        found = set()
        for pid, name in self.processes().items():
            for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target in listening:
                        found.add((*listening[target], name))
        return found


def _listening() -> dict[str, tuple[str, int]]:
    """Address and port of each listening socket, by what its descriptors are links to."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            if words[3] == "0A":
                found[f"socket:[{words[9]}]"] = (_readable(address), int(port, 16))
    return found


def _readable(address: str) -> str:
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    packed = b"".join(words)
    if len(packed) == 4 or packed.startswith(bytes(10) + b"\xff\xff"):
        return ".".join(map(str, packed[-4:]))
    return packed.hex()


def this_session(url: str) -> Served:
    """Return the session that this process has started, which serves at `url`."""
    folder = Path(os.environ[haproxy_config.SESSION_VARIABLE])
    gcs = ray.get_runtime_context().gcs_address
    return Served(url, os.getpid(), "", folder, gcs)


@contextlib.contextmanager
def served(root: str, port: int, umask: int = 0o022) -> Iterator[Served]:
    """Serve ``root`` in a process of its own until the block ends."""
    command = [sys.executable, "-m", "tests.seams.one_stream", root, str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, umask=umask
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            reported = next(json.loads(line) for line in lines if line.startswith("{"))
            yield Served(**{**reported, "folder": Path(reported["folder"])})
        finally:
            process.stdin.close()
            process.stdout.close()
            process.wait(timeout=START_S)


def ended_pid() -> int:
    """The id of a process that is no more."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid
