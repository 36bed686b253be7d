"""Sources and targets by the names that people give them: a path, or a URL of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.faiss_source import INDEXES, FaissSource
from stream_odml.exchange.files_source import TABLES, NpzSource, TableSource
from stream_odml.exchange.folder_target import FolderTarget
from stream_odml.exchange.lance import LanceSource, LanceTarget
from stream_odml.exchange.postgres import PostgresSource
from stream_odml.exchange.postgres_target import PostgresTarget
from stream_odml.exchange.qdrant import QdrantSource, QdrantTarget
from stream_odml.exchange.source import GallerySource, Names
from stream_odml.exchange.target import SyncTarget
from stream_odml.storage.reading import scheme_of
from stream_odml.storage.regular import checked_path, kind_of

SOURCES = (
    "a Parquet or Arrow file or a folder of them, an .npz, a .faiss index, qdrant://HOST/COLLECTION, "
    "qdrant:///FOLDER/COLLECTION, lancedb:///FOLDER/TABLE or postgresql://HOST/DATABASE?table=NAME"
)
TARGETS = "a folder, qdrant://HOST/NAME, qdrant:///FOLDER/NAME, lancedb:///FOLDER/NAME or postgresql://HOST/DATABASE?table=NAME"
_STORES = {
    "qdrant": (QdrantSource, QdrantTarget),
    "lancedb": (LanceSource, LanceTarget),
    "postgres": (PostgresSource, PostgresTarget),
}
"""By how the scheme of a URL begins."""


def _store(place: str, done: str, known: str) -> tuple[Any, Any] | None:
    """Return what reads and what writes the store of a URL; None for a path."""
    scheme = scheme_of(place)
    if not scheme:
        return None
    for kind, store in _STORES.items():
        if scheme.startswith(kind):
            return store
    raise ExchangeError(f"{place}: nothing is {done} {scheme}://; name {known}")


def open_target(place: str) -> SyncTarget:
    """Return the target at a place. Raises ExchangeError for one that cannot be used as it is named."""
    store = _store(place, "written to", TARGETS)
    target: SyncTarget = (
        FolderTarget(Path(checked_path("folder", place))) if store is None else store[1](place)
    )
    return target


def open_source(place: str, names: Names, ids: Path | None = None) -> GallerySource:
    """Return the gallery at a place. Raises ExchangeError for one that cannot be read as it is named."""
    if (store := _store(place, "read from", SOURCES)) is not None:
        source: GallerySource = store[0](place, names)
        return source
    path = Path(checked_path("place", place))
    if not path.exists():
        raise ExchangeError(f"{path} does not exist; name {SOURCES}")
    if not path.is_file() and not path.is_dir():
        raise ExchangeError(
            f"{path} is {kind_of(path.stat().st_mode)}, which is read only once; name a file or a folder"
        )
    suffix = path.suffix.lower()
    if suffix in INDEXES:
        return FaissSource(path, names, ids)
    if ids is not None:
        raise ExchangeError(f"--ids goes with a FAISS index; {path} has a column of ids: --id COL")
    if suffix == ".npz":
        return NpzSource(path, names)
    if path.is_dir() or suffix in TABLES:
        return TableSource(path, names)
    raise ExchangeError(f"{path} is of no kind that is known; name {SOURCES}")
