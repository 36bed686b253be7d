"""The lease: a second run on a stream root stops with a message while the first one lives.

Protects people, not data: the epoch in the tables is what keeps a zombie from committing, whatever this file says.
"""

import json
import os
import platform
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, TypeAdapter

from stream_odml.storage.files import SMALL_FILE, Files
from stream_odml.storage.process import is_alive
from stream_odml.store.errors import RootBusy

LEASE = "lease.json"
MAX_LEASE_S = 3600.0
"""Longest that a lease may ask for: a file that asks for more is no lease of ours, and would keep a root for ever."""
CLOCK_SKEW_S = 300.0
"""Clocks of two hosts differ by less: a lease from further in the future is none."""
MAX_HOLDER_CHARS = 200
_Whole = Annotated[int, Field(ge=0, lt=2**63)]
_Seconds = Annotated[float, Field(gt=-1e12, lt=1e12)]


@dataclass(frozen=True)
class LeaseRecord:
    """Who holds a root. `boot_clock` is seconds since the host's boot: it does not jump when the wall clock does."""

    token: str
    holder: Annotated[str, Field(max_length=MAX_HOLDER_CHARS)]
    host: str
    pid: _Whole
    pid_start: str
    wall: _Seconds
    boot_clock: _Seconds
    lease_s: Annotated[float, Field(gt=0, le=MAX_LEASE_S)]
    epoch: _Whole = 0

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "strict": True}

    def alive(self) -> bool:
        """Return whether its holder must be taken to live still."""
        if self.host == host_identity():
            if _pid_start(self.pid) != self.pid_start:
                return False
            return _boot_clock() - self.boot_clock < self.lease_s
        return time.time() - self.wall < self.lease_s


_RECORD = TypeAdapter(LeaseRecord)


class Lease:
    """A lease that this process holds; a daemon thread renews it until `release`."""

    def __init__(self, files: Files, record: LeaseRecord) -> None:
        self._files = files
        self._record = record
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="stream-odml-lease", daemon=True)
        self.lost = False
        """Another holder took the lease over; the next commit will find out why."""

    @staticmethod
    def acquire(files: Files, holder: str, lease_s: float, takeover: bool = False) -> "Lease":
        """Take the root's lease. Raises RootBusy while another holder lives, unless `takeover`."""
        if not 0 < lease_s <= MAX_LEASE_S:
            raise ValueError(
                f"lease_s is {lease_s}; it must be above 0 and at most {MAX_LEASE_S:.0f} seconds"
            )
        if not takeover:
            check_not_held(files)
        now, here, pid = (time.time(), _boot_clock()), host_identity(), os.getpid()
        record = LeaseRecord(uuid.uuid4().hex, holder, here, pid, _pid_start(pid), *now, lease_s)
        lease = Lease(files, record)
        lease.write()
        lease._thread.start()
        return lease

    def write(self, epoch: int | None = None) -> None:
        """Renew the lease now, and name the epoch once it is known."""
        epoch = self._record.epoch if epoch is None else epoch
        self._record = replace(self._record, wall=time.time(), boot_clock=_boot_clock(), epoch=epoch)
        self._files.write(LEASE, json.dumps(asdict(self._record)).encode(), durable=False)

    def release(self) -> None:
        """Give the root back at once. Harmless when repeated, or when somebody else holds it by now."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        current = read_lease(self._files)
        if current is not None and current.token == self._record.token:
            self._files.delete(LEASE)

    def _renew(self) -> None:
        while not self._stop.wait(self._record.lease_s / 4):
            try:
                current, own = read_lease(self._files), self._record
                if current is not None and current.token != own.token and current.epoch >= own.epoch:
                    self.lost = True
                    return
                self.write()
            except OSError:
                continue  # a full or slow disk must not end the lease for good: the next beat tries again


def check_not_held(files: Files) -> None:
    """Raise RootBusy while somebody holds the root's lease."""
    current = read_lease(files)
    if current is not None and current.alive():
        raise RootBusy(
            f"{files.uri} is in use by {current.holder!r} (process {current.pid}); stop it first, "
            f"or wait {current.lease_s:.0f} s if its machine is gone"
        )


def read_lease(files: Files) -> LeaseRecord | None:
    """Return the root's lease, or None when there is none (or none that can be read: then the epoch decides alone)."""
    try:
        record = _RECORD.validate_json(files.read(LEASE, SMALL_FILE))  # anybody may have written it
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return None
    here = record.host == host_identity()
    is_past = record.boot_clock <= _boot_clock() if here else record.wall <= time.time() + CLOCK_SKEW_S
    return record if is_past and record.holder.isprintable() else None


def host_identity() -> str:
    """Return a name of the place where a process id means something: host, boot, process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, namespace = "", ""
    return f"{platform.node()}/{boot}/{namespace}"


def _pid_start(pid: int) -> str:
    """Return when a process began, in clock ticks since boot: a recycled id differs. Empty when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "" if Path("/proc/self/stat").exists() or not is_alive(pid) else "alive"
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _boot_clock() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
