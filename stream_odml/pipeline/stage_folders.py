"""The folders of a stage on its node's disk: the decoded pixels of each node, and what each rank writes aside.

Protects: what a killed, skipped or dropped stage left is removed as soon as its node learns again or waits to; nothing
of another stream is.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.cache import PLAN
from stream_odml.pipeline.messages import StageOrder
from stream_odml.storage.reading import scheme_of

log = logging.getLogger(__name__)
_SUFFIX = re.compile(r"\.(node|rank)-\d+$")


def cache_root(config: StreamConfig, stream_id: str) -> Path:
    """Return the folder of this stream's pixel caches on this node, which no other stream shares."""
    if config.cluster.cache_dir is not None:
        return config.cluster.cache_dir / f"{config.name}-{stream_id}"
    return default_cache_root(config.root, stream_id)


def default_cache_root(root: str, stream_id: str) -> Path:
    """Return the same where the configuration names no `cluster.cache_dir`."""
    if not scheme_of(root):
        return Path(root).absolute() / "cache"
    return Path(tempfile.gettempdir()) / f"stream-odml-cache-{stream_id}"


def stage_folder(caches: Path, order: StageOrder, of: Literal["node", "rank"], number: int) -> Path:
    """Return where a node keeps the pixels of a stage, or a rank what it writes aside during one. Nodes may share a
    disk, and each writes a cache of its own."""
    return caches / f"{_stage_name(order)}.{of}-{number}"


def stage_name_of(folder: str) -> str:
    """Return the task or attempt that a folder of `stage_folder` is of, by its name."""
    return _SUFFIX.sub("", folder)


def _stage_name(order: StageOrder) -> str:
    return order.version_id if order.improves else order.task


def stage_folders(caches: Path) -> list[Path]:
    """Return the folders of stages, by their names and by what is in them: the root of caches may be a link into a
    folder with other things. An earlier release named those of pixels by their task alone."""
    try:
        found = [entry for entry in caches.iterdir() if entry.is_dir() and not entry.is_symlink()]
    except OSError:
        return []
    return sorted(f for f in found if _SUFFIX.search(f.name) or (f / PLAN).exists())


def keep_only(caches: Path, order: StageOrder | None) -> None:
    """Remove the folders of all stages but `order`; of all where there is none. To be called while no rank works at
    another stage; another node may remove the same on a disk that they share."""
    wanted = None if order is None else _stage_name(order)
    for folder in stage_folders(caches):
        if stage_name_of(folder.name) == wanted:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        if folder.is_dir():  # held open over a network, say: it is tried again
            log.warning("%s of an ended stage cannot be removed; it is tried again", folder)


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """Yield the folder, emptied of what a killed process left there; it is removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
