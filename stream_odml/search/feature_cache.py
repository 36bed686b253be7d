"""Trunk features of the gallery's data files on this node's disk, memory-mapped: a new head reads them, not Parquet.

Protects: a copy is written aside and renamed, so that it is whole or not there, and goes as soon as the table does not
name its data file any more: what is erased stays in no copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.storage.atomic import write_whole
from stream_odml.store.store import Store

log = logging.getLogger(__name__)


class FeatureCache:
    """One immutable file a data file, under ``folder``; several processes may share it. Belongs to one thread."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Without a folder: a temporary one, which goes with this object."""
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="stream-odml-features-")
        self._folder = Path(self._own.name if self._own else folder or "")
        self._seen: frozenset[str] | None = None

    def features(self, store: Store, path: str) -> FeatureCodes:
        """Return features of a data file, as stored: from the copy, made if there is none. Where nothing can
        be written they are in memory. FileNotFoundError for a data file that was vacuumed."""
        file = self._file(store, path)
        with contextlib.suppress(OSError, ValueError):
            return _mapped(file, store)
        features = store.features(path)
        try:
            _write(file, features)
            return _mapped(file, store)
        except (OSError, ValueError) as error:
            log.warning("features of %s are not cached in %s: %s", path, self._folder, error)
            return features

    def follow(self, store: Store) -> None:
        """Remove copies of data files that the table does not name any more."""
        present = store.tables["gallery"].present
        if present is self._seen:
            return
        if self._seen is None:
            kept = {self._file(store, path).name for path in present}
            folder = self._folder / store.stream_id
            gone = [file for file in folder.glob("*") if file.name not in kept] if folder.is_dir() else []
        else:
            gone = [self._file(store, path) for path in self._seen - present]
        self._seen = present
        for file in gone:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _file(self, store: Store, path: str) -> Path:
        name = hashlib.sha256(path.encode()).hexdigest()[:32]
        return self._folder / store.stream_id / f"{name}.{store.row_codes}"


def _mapped(file: Path, store: Store) -> FeatureCodes:
    """First all scales, then all codes."""
    data = np.memmap(file, np.uint8, "r")
    kind = np.dtype(store.row_codes)
    width = store.dim * kind.itemsize
    rows, over = divmod(len(data), width + 4)
    if over:
        raise ValueError(f"{file} has {len(data)} bytes, no whole number of rows of {width + 4}")
    return FeatureCodes(
        data[4 * rows :].view(kind).reshape(rows, store.dim), np.array(data[: 4 * rows]).view(np.float32)
    )


def _write(file: Path, features: FeatureCodes) -> None:
    def fill(out: IO[bytes]) -> None:
        features.scale_n.tofile(out)
        features.codes_nD.tofile(out)

    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, fill, durable=False)  # what a crash of the machine takes is made again
