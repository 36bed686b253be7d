"""Sources and targets by the names that people give them: a path, or a URL of a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.faiss_source import INDEXES, FaissSource
from stream_odml.exchange.files_source import TABLES, NpzSource, TableSource
from stream_odml.exchange.lance import LanceSource
from stream_odml.exchange.postgres import PostgresSource
from stream_odml.exchange.qdrant import QdrantSource
from stream_odml.exchange.source import GallerySource, Names
from stream_odml.storage.reading import scheme_of

SOURCES = (
    "a Parquet or Arrow file or a folder of them, an .npz, a .faiss index, qdrant://HOST/COLLECTION, "
    "qdrant:///FOLDER/COLLECTION, lancedb:///FOLDER/TABLE or postgresql://HOST/DATABASE?table=NAME"
)
_STORES: dict[str, Callable[[str, Names], GallerySource]] = {
    "qdrant": QdrantSource,
    "lancedb": LanceSource,
    "postgres": PostgresSource,
}
"""By how the scheme of a URL begins."""


def open_source(place: str, names: Names, ids: Path | None = None) -> GallerySource:
    """Return the gallery at a place. Raises ExchangeError for one that cannot be read as it is named."""
    if scheme := scheme_of(place):
        store = next((source for kind, source in _STORES.items() if scheme.startswith(kind)), None)
        if store is None:
            raise ExchangeError(f"{place}: nothing is read from {scheme}://; name {SOURCES}")
        return store(place, names)
    path = Path(place)
    if not path.exists():
        raise ExchangeError(f"{path} does not exist; name {SOURCES}")
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
