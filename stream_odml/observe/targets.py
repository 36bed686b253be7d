"""Prometheus finds our exporters by files, one each: written when an exporter starts, taken back when it ends.

So a driver that Ray restarts on another node is scraped there within seconds, and no address is ever configured.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from stream_odml.storage.atomic import write_whole
from stream_odml.storage.process import is_alive
from stream_odml.storage.reading import scheme_of

ANYWHERE = ("0.0.0.0", "::", "")


def targets_folder(root: str, chosen: Path | None) -> Path | None:
    """Return `chosen`, or metrics/ under a root that is a folder; None for an object store."""
    if chosen is not None:
        return chosen
    return None if scheme_of(root) else Path(root) / "metrics"


def reachable(host: str, node_address: str) -> str:
    """Return `host`, or the node's own address where an exporter listens on every interface."""
    return node_address if host in ANYWHERE else host


def announce(folder: Path, name: str, address: str, labels: Mapping[str, str]) -> Path:
    """Write `folder/name.json` for `address` (host:port); the file of an earlier holder of the name is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.json"):  # by processes that are gone: a killed one cannot do it itself
        _remove_if(left, lambda pid: not is_alive(pid))
    described = {**labels, "__meta_host": socket.gethostname(), "__meta_pid": str(os.getpid())}
    path = folder / f"{name}.json"
    entry = json.dumps([{"targets": [address], "labels": described}]).encode()
    write_whole(path, lambda file: file.write(entry), durable=False)
    return path


def withdraw(path: Path | None) -> None:
    """Remove our file, unless a successor has written its own under the same name."""
    if path is not None:
        _remove_if(path, lambda pid: pid == os.getpid())


def _remove_if(path: Path, goes: Callable[[int], bool]) -> None:
    """Remove the file of a process of this host whose number is one that `goes`."""
    with contextlib.suppress(OSError, ValueError, LookupError):
        labels = json.loads(path.read_text(encoding="utf-8"))[0]["labels"]
        if labels["__meta_host"] == socket.gethostname() and goes(int(labels["__meta_pid"])):
            path.unlink(missing_ok=True)
