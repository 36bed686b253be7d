"""Two network namespaces on a bridge: each is a host of its own to whatever runs in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

BRIDGE, SUBNET = "odmlbr", "10.77.0"


@dataclass(frozen=True)
class Host:
    """A namespace with an address; `prefix` runs a command in it."""

    name: str
    ip: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)


def can_make_namespaces() -> bool:
    """Whether this process may, and has the tool."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces that reach each other and this one over a bridge, and nothing else."""
    hosts = Host("odml-a", f"{SUBNET}.2"), Host("odml-b", f"{SUBNET}.3")
    _remove(hosts)
    try:
        _ip(f"link add {BRIDGE} type bridge")
        _ip(f"addr add {SUBNET}.1/24 dev {BRIDGE}")
        _ip(f"link set {BRIDGE} up")
        for host in hosts:
            outside = f"v-{host.name}"
            _ip(f"netns add {host.name}")
            _ip(f"link add {outside} type veth peer name eth0 netns {host.name}")
            _ip(f"link set {outside} master {BRIDGE} up")
            for line in (f"addr add {host.ip}/24 dev eth0", "link set eth0 up", "link set lo up"):
                _ip(f"-n {host.name} {line}")
        yield hosts
    finally:
        _remove(hosts)


def _remove(hosts: tuple[Host, ...]) -> None:
    for host in hosts:
        _ip(f"netns del {host.name}", check=False)
    _ip(f"link del {BRIDGE}", check=False)


def _ip(line: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *line.split()], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"ip {line}: {done.stderr.strip()}")
