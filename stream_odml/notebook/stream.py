"""One stream for a notebook, whether it is a root on a disk or a service that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stream_odml.ingest.fields import written_out
from stream_odml.notebook.queries import Subject, subject_of
from stream_odml.notebook.results import Items, Versions, table


class Asked(NamedTuple):
    """A search, but for its subject."""

    k: int = 10
    version: str | None = None
    """That made a vector; None: the served one."""
    classes: Sequence[str] | None = None
    attributes: Mapping[str, str] | None = None
    after: datetime | None = None
    before: datetime | None = None


class Place(Protocol):
    """Where a stream is looked at: its root, or its service."""

    def search(self, subject: Subject, asked: Asked) -> Items: ...

    def items(self, class_name: str | None, limit: int) -> Items: ...

    def versions(self) -> Versions: ...

    def add(self, path: Path, name: str | None) -> list[str]: ...

    def export(self, to: str, formats: Sequence[str] | None) -> list[str]: ...

    def facts(self) -> dict[str, str]: ...


class Stream:
    """A stream, as it is now: every call sees what was committed by then. Made by `stream_odml.open`."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        version: str | None = None,
        classes: Sequence[str] | None = None,
        attributes: Mapping[str, str] | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
    ) -> Items:
        """Return the `k` nearest items to an image (path, bytes, Pillow image, pixels) or to a vector, made by
        `version`. Raises ValueError for what is neither."""
        return self._place.search(subject_of(query), Asked(k, version, classes, attributes, after, before))

    def items(self, class_name: str | None = None, limit: int = 1000) -> Items:
        """Return items of the gallery, of one class or of all. A service gives a sample of all where there are more
        than `limit`."""
        return self._place.items(class_name, limit)

    @property
    def versions(self) -> Versions:
        """The versions in order of commit."""
        return self._place.versions()

    def add(self, path: str | Path, name: str | None = None) -> list[str]:
        """Land a folder of class folders, or a Parquet, Arrow or tar file; return what was landed. It is searchable
        within seconds where the stream runs, else once it does. Repeating lands nothing twice."""
        return self._place.add(Path(path), name)

    def export(self, to: str | Path, formats: Sequence[str] | None = None) -> list[str]:
        """Write the gallery and its model to a folder, or the gallery into another store (`qdrant://` ...), as the
        command `export` does; return the files. `formats`: some of parquet, faiss, npz, model and onnx."""
        return self._place.export(str(to), formats)

    def __repr__(self) -> str:
        return "\n".join(written_out(f"{name:9} {value}") for name, value in self._place.facts().items())

    def _repr_html_(self) -> str:
        return table(("stream", ""), self._place.facts().items())


def open_stream(
    place: str | Path, token: str | None = None, storage_options: dict[str, str] | None = None
) -> Stream:
    """Open a stream root (folder or object-store prefix), or a running service by its address (`http://`)."""
    where = str(place)
    if where.startswith(("http://", "https://")):
        from stream_odml.notebook.service import ServicePlace

        return Stream(ServicePlace(where, token))
    from stream_odml.notebook.root import RootPlace

    return Stream(RootPlace(where, storage_options))
