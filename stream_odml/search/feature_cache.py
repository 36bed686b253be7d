"""Trunk features of the gallery's data files on this node's disk, memory-mapped: a new head reads them, not Parquet.

Protects: a copy is whole or not there, and goes as soon as the table does not name its data file any more, or, in no
folder, as the process ends, killed or not: what is erased stays in no copy.
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

MAX_UNNAMED = 256
"""Copies without a name, each of which keeps a file open: a gallery has a few dozen data files, and more only where
its maintenance is behind."""


class FeatureCache:
    """One immutable copy of each data file. Belongs to one thread."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """With a folder copies are files in it, which several processes may share and which outlive them. Without,
        they have no name and end with this object."""
        self._folder = None if folder is None else Path(folder)
        self._unnamed: dict[str, FeatureCodes] = {}
        self._seen: frozenset[str] | None = None

    def features(self, store: Store, path: str) -> FeatureCodes:
        """Return features of a data file, as stored: from the copy, made if there is none. Where nothing can
        be written they are in memory. FileNotFoundError for a data file that was vacuumed."""
        if path in self._unnamed:
            return self._unnamed[path]
        if self._folder is not None:
            with contextlib.suppress(OSError, ValueError):  # there is none, or one of another length
                return _mapped(self._file(self._folder, store, path), store)
        features = store.features(path)
        if len(self._unnamed) >= MAX_UNNAMED:
            return features
        try:
            return self._kept(store, path, features)
        except (OSError, ValueError) as error:
            log.warning("features of %s are not cached in %s: %s", path, self._folder or "a file", error)
            return features

    def follow(self, store: Store) -> None:
        """Remove copies of data files that the table does not name any more."""
        present = store.table("gallery").present
        if present is self._seen:
            return
        self._unnamed = {path: copy for path, copy in self._unnamed.items() if path in present}
        if self._folder is not None:
            self._remove_files(self._folder / store.stream_id, store, present)
        self._seen = present

    def _kept(self, store: Store, path: str, features: FeatureCodes) -> FeatureCodes:
        def fill(out: IO[bytes]) -> None:
            features.scale_n.tofile(out)
            features.codes_nD.tofile(out)

        if self._folder is not None:
            file = self._file(self._folder, store, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, fill, durable=False)  # what a crash of the machine takes is made again
            return _mapped(file, store)
        with tempfile.TemporaryFile() as unnamed:
            fill(unnamed)
            unnamed.flush()
            return self._unnamed.setdefault(path, _mapped(unnamed, store))

    def _remove_files(self, folder: Path, store: Store, present: frozenset[str]) -> None:
        if self._seen is None:
            kept = {self._file(folder.parent, store, path).name for path in present}
            gone = [file for file in folder.glob("*") if file.name not in kept] if folder.is_dir() else []
        else:
            gone = [self._file(folder.parent, store, path) for path in self._seen - present]
        for file in gone:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    @staticmethod
    def _file(folder: Path, store: Store, path: str) -> Path:
        name = hashlib.sha256(path.encode()).hexdigest()[:32]
        return folder / store.stream_id / f"{name}.{store.row_codes}"


def _mapped(file: Path | IO[bytes], store: Store) -> FeatureCodes:
    """Read first all scales, then all codes."""
    data = np.memmap(file, np.uint8, "r")
    kind = np.dtype(store.row_codes)
    width = store.dim * kind.itemsize
    rows, over = divmod(len(data), width + 4)
    if over:
        raise ValueError(f"{file} has {len(data)} bytes, no whole number of rows of {width + 4}")
    return FeatureCodes(
        data[4 * rows :].view(kind).reshape(rows, store.dim), np.array(data[: 4 * rows]).view(np.float32)
    )
