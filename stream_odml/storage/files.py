"""Plain files under a stream root, on a local disk or an object store.

Protects: a name either holds complete bytes or does not exist (written aside, synced, renamed; a put is
atomic by itself). No name, whoever wrote it, reaches a file outside the root, and only regular files are read.
"""

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow.fs as pafs
from deltalake.fs import DeltaStorageHandler

from stream_odml.storage.atomic import write_whole
from stream_odml.storage.crashpoints import crash_point
from stream_odml.storage.delta_compat import open_output
from stream_odml.storage.reading import check_prefix, scheme_of, table_options
from stream_odml.storage.regular import (
    UnsafePath,
    check_root,
    inside,
    is_safe_path,
    open_regular,
    place_below,
    refuse_links,
)

COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class FileInfo:
    """One file: `path` relative to the root, `size` in bytes, `mtime` in seconds since 1970."""

    path: str
    size: int
    mtime: float


SMALL_FILE = 1 << 20
"""Bytes of a file that holds a few values: a larger one is none of ours, and is not read into memory."""


class LocalFiles:
    """A folder. A write goes aside, is synced, renamed, the folder synced: no half file after a crash."""

    def __init__(self, root: str) -> None:
        self.uri = root

    def read(self, path: str, limit: int | None = None) -> bytes:
        with open_regular(inside(self.uri, path)) as file:
            _check_size(path, os.fstat(file.fileno()).st_size, limit)
            return file.read()

    def write(self, path: str, data: bytes, durable: bool = True) -> None:
        self._write(path, io.BytesIO(data), durable)

    def upload(self, path: str, source: Path) -> None:
        with source.open("rb") as data:
            self._write(path, data, True)

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        full = inside(self.uri, path)
        open_regular(full).close()
        yield full

    def _write(self, path: str, data: IO[bytes], durable: bool) -> None:
        target = place_below(self.uri, path)
        target.parent.mkdir(parents=True, exist_ok=True)

        def show(aside: Path, name: Path) -> None:
            if durable:
                crash_point("file.before_rename")
            aside.rename(name)

        write_whole(
            target, lambda file: shutil.copyfileobj(data, file, COPY_BYTES), durable=durable, show=show
        )

    def exists(self, path: str) -> bool:
        return inside(self.uri, path).exists()

    def list(self, prefix: str) -> Iterator[FileInfo]:
        for folder, _, names in os.walk(inside(self.uri, prefix or ".")):
            for name in sorted(names):
                full = Path(folder) / name
                try:
                    seen = full.lstat()
                except FileNotFoundError:
                    continue  # deleted while listing: then it is not there
                if stat.S_ISREG(seen.st_mode):
                    yield FileInfo(str(full.relative_to(self.uri)), seen.st_size, seen.st_mtime)

    def delete(self, path: str) -> None:
        full = place_below(self.uri, path)
        full.unlink(missing_ok=True)
        if full.parent != Path(self.uri) and full.parent.is_dir() and not any(full.parent.iterdir()):
            full.parent.rmdir()

    def arrow(self, prefix: str) -> pafs.FileSystem:
        return pafs.SubTreeFileSystem(str(Path(self.uri) / prefix), pafs.LocalFileSystem())

    def check(self, path: str) -> None:
        """Raise UnsafePath unless `path` is a regular file inside the root; FileNotFoundError when it is none."""
        open_regular(inside(self.uri, path)).close()

    def only_regular(self, prefix: str) -> None:
        """Raise UnsafePath when a link, FIFO, socket or device lies below `prefix`: other libraries follow them."""
        refuse_links(Path(self.uri) / prefix)


class ObjectFiles:
    """A prefix of an object store, through the same client and options as the tables; a put is atomic."""

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None) -> None:
        self.uri = uri
        self._options = table_options(uri, storage_options)

    @cached_property
    def _handler(self) -> Any:
        return DeltaStorageHandler(self.uri, self._options)

    @cached_property
    def _filesystem(self) -> pafs.FileSystem:
        return pafs.PyFileSystem(self._handler)

    def read(self, path: str, limit: int | None = None) -> bytes:
        with self._filesystem.open_input_file(path) as file:
            _check_size(path, file.size(), limit)
            return bytes(file.read())

    def write(self, path: str, data: bytes, durable: bool = True) -> None:
        if durable:
            crash_point("file.before_rename")
        stream = open_output(self._handler, path)
        stream.write(data)
        stream.close()

    def upload(self, path: str, source: Path) -> None:
        stream = open_output(self._handler, path)
        with source.open("rb") as data:
            shutil.copyfileobj(data, stream, COPY_BYTES)
        stream.close()

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Yield a copy on this machine's disk for as long as the block lasts."""
        with unnamed_file() as (target, copy):
            with self._filesystem.open_input_stream(path) as source:
                shutil.copyfileobj(source, target, COPY_BYTES)
            target.flush()
            yield copy

    def exists(self, path: str) -> bool:
        return bool(self._filesystem.get_file_info([path])[0].type == pafs.FileType.File)

    def list(self, prefix: str) -> Iterator[FileInfo]:
        for info in self._filesystem.get_file_info(
            pafs.FileSelector(prefix, allow_not_found=True, recursive=True)
        ):
            if info.type == pafs.FileType.File:
                yield FileInfo(info.path, info.size or 0, info.mtime.timestamp() if info.mtime else 0.0)

    def delete(self, path: str) -> None:
        self._filesystem.delete_file(path)

    def arrow(self, prefix: str) -> pafs.FileSystem:
        handler: Any = DeltaStorageHandler(f"{self.uri}/{prefix}".rstrip("/"), self._options)
        return pafs.PyFileSystem(handler)

    def check(self, path: str) -> None:
        """Raise UnsafePath for a name that could leave the prefix."""
        if not is_safe_path(path):
            raise UnsafePath(f"{path[:200]!r} is no path below {self.uri}; it is not followed")

    def only_regular(self, prefix: str) -> None:
        """Accept anything: an object store has neither links nor FIFOs."""


Files = LocalFiles | ObjectFiles
"""What lies under a stream root: both have the same methods."""


def open_files(uri: str, storage_options: dict[str, str] | None = None) -> Files:
    """Return files under `uri`: a local path when it has no scheme, else what the scheme names. Raises ValueError for
    a path or a prefix that cannot hold Delta tables."""
    if scheme_of(uri):
        check_prefix(uri)
        return ObjectFiles(uri.rstrip("/"), storage_options)
    return LocalFiles(check_root(uri))


@contextmanager
def unnamed_file() -> Iterator[tuple[IO[bytes], Path]]:
    """Yield a new file without a name, open for writing, and a path under which this process can open it as long as the
    block lasts: what was written is seen there once it is flushed. It ends with this process, however that ends."""
    with tempfile.TemporaryFile() as file:
        yield file, Path(f"/proc/self/fd/{file.fileno()}")


def _check_size(path: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise ValueError(f"{path} has {size} bytes; expected at most {limit}")
