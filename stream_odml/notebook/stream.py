"""One stream for a notebook, a root on a disk or a service that runs, and what may be searched for in it."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stream_odml.ingest import fields
from stream_odml.ingest.fields import written_out
from stream_odml.ingest.reasons import RowError
from stream_odml.ingest.vectors import checked_vector
from stream_odml.notebook.results import Items, Versions, table

Subject = bytes | NDArray[np.float32]


def subject_of(query: Any) -> Subject:
    """Return the bytes of an image file, or a vector float32 [d]. Raises ValueError or FileNotFoundError."""
    if isinstance(query, bytes | bytearray | memoryview):
        return bytes(query)
    if isinstance(query, str | os.PathLike):
        if not (path := Path(query)).is_file():
            raise FileNotFoundError(f"there is no image {str(path)!r}; give the path of a file")
        return path.read_bytes()
    if isinstance(query, Image.Image):
        return _png(query)
    array = np.asarray(query)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return _png(Image.fromarray(array))
    if array.ndim == 1 and len(array) and array.dtype.kind in "iuf":
        try:
            return checked_vector(array)
        except RowError as error:
            raise ValueError(error.detail) from None
    raise ValueError(
        f"cannot search for {type(query).__name__} ({array.dtype} {list(array.shape)}); give the path or the bytes "
        "of an image, a Pillow image, pixels uint8 [height, width, 3], or a vector [d]"
    )


def _moment(time: datetime | None, name: str) -> datetime | None:
    try:
        return fields.when(time)
    except RowError as error:
        raise ValueError(f"{name}: {error.detail}") from None


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    if not all(image.size):
        raise ValueError(
            f"an image of {image.width} x {image.height} pixels shows nothing; give one with pixels"
        )
    try:
        image.save(out, "PNG")
    except OSError:  # of a mode that a PNG has no form for; a TIFF has one for CMYK, floats and the like
        image.save(out := io.BytesIO(), "TIFF")
    return out.getvalue()


class Asked(NamedTuple):
    """A search, but for its subject."""

    k: int = 10
    version: str | None = None
    """That made a vector; None: the served one."""
    classes: Sequence[str] | None = None
    attributes: Mapping[str, str] | None = None
    after: datetime | None = None
    before: datetime | None = None


class Stream(ABC):
    """A stream, as it is now: every call sees what was committed by then. Made by `stream_odml.open`."""

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
        `version`, as a service would be asked. Raises ValueError for what is neither, and for what no filter can be."""
        if not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k is {k!r}; expected a whole number from 1")
        named = [classes] if isinstance(classes, str) else classes
        for text in (*(() if named is None else named), *dict(attributes or {}).values()):
            if not isinstance(text, str):
                raise ValueError(f"classes and attributes are text, and {text!r} is none; write '{text}'")
        moments = [_moment(time, name) for time, name in ((after, "after"), (before, "before"))]
        subject = subject_of(query)
        if version is not None and isinstance(subject, bytes):
            raise ValueError("version says which model made a vector; an image is embedded by the served one")
        return self._search(subject, Asked(int(k), version, named, attributes, *moments))

    @abstractmethod
    def _search(self, subject: Subject, asked: Asked) -> Items: ...

    @abstractmethod
    def items(self, class_name: str | None = None, limit: int = 1000) -> Items:
        """Return items of the gallery, of one class or of all. A service gives a sample of all where there are more
        than `limit`."""

    @property
    @abstractmethod
    def versions(self) -> Versions:
        """The versions in order of commit."""

    @abstractmethod
    def add(self, path: str | Path, name: str | None = None) -> list[str]:
        """Land a folder of class folders, or a Parquet, Arrow or tar file; return what was landed. It is searchable
        within seconds where the stream runs, else once it does. Repeating lands nothing twice."""

    @abstractmethod
    def export(self, to: str | Path, formats: str | Sequence[str] | None = None) -> list[str]:
        """Write the gallery and its model to a folder, or the gallery into another store (`qdrant://` ...), as the
        command `export` does; return the files. `formats`: some of parquet, faiss, npz, model and onnx."""

    @abstractmethod
    def _facts(self) -> dict[str, str]: ...

    def __repr__(self) -> str:
        return "\n".join(written_out(f"{name:9} {value}") for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        return table(("stream", ""), self._facts().items())


def open_stream(
    place: str | Path, token: str | None = None, storage_options: dict[str, str] | None = None
) -> Stream:
    """Open a stream root (folder or object-store prefix), or a running service by its address (`http://`). Raises
    TypeError for what is neither."""
    if not isinstance(place, str | os.PathLike):
        raise TypeError(
            f"{place!r} is no place; give a stream root (folder or prefix) or an address, http://HOST:PORT"
        )
    where = str(place)
    if where.startswith(("http://", "https://")):
        from stream_odml.notebook.service import ServiceStream

        return ServiceStream(where, token)
    from stream_odml.notebook.root import RootStream

    return RootStream(where, storage_options)
