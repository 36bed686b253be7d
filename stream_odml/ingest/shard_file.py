"""One open file of a shard, wherever it lies, with failures of the medium kept apart from bad data.

Invariant: an error of the medium becomes `TransientReadError` here, so that every other error that a parser
raises above this file is the data's own fault.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from typing import Any

from stream_odml.ingest.reasons import BadShard, Reason, TransientReadError
from stream_odml.ingest.shard import HASH_CHARS, MANIFEST_NAME, ShardManifest
from stream_odml.storage.reading import StorageOptions, is_remote, join, local_path, s3_filesystem, s3_path
from stream_odml.storage.regular import UnsafePath, open_regular

FETCHED_WHOLE = 8 << 20
"""Bytes up to which a file of an object store is fetched by one request, not by one for each part that is read."""


class ShardFile(io.RawIOBase):
    """One open file, seekable, that remembers how it looked when it was opened. Raises BadShard(missing_file) when it
    is not there, BadShard(unsafe_path) for a link or a pipe, TransientReadError when the medium fails. `failure` keeps
    the medium's error, because some parsers replace the exception by one of their own."""

    def __init__(self, uri: str, options: StorageOptions | None = None) -> None:
        self.uri = uri
        self.options = options
        self.failure: OSError | None = None
        self._inner: Any = None
        self._is_apart = is_remote(uri)
        """Whether what is read has to be asked for."""
        try:
            if is_remote(uri):
                self._inner = s3_filesystem(options).open_input_file(s3_path(uri))
            else:
                self._inner = open_regular(local_path(uri), follow=False)
            self.looks = self._look()
        except (UnsafePath, IsADirectoryError) as error:
            raise BadShard(Reason.UNSAFE_PATH, str(error)) from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadShard(Reason.MISSING_FILE, f"{uri} is gone: {error}") from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # of a manifest: no file will ever have it
                raise BadShard(Reason.MISSING_FILE, f"no file has so long a name: {uri[:200]}…") from error
            raise TransientReadError(f"{uri} cannot be opened now: {error}") from error

    def _look(self) -> tuple[int, str]:
        if is_remote(self.uri):
            # The entity tag changes exactly when the bytes of an object do.
            meta = self._inner.metadata() or {}
            tag = meta.get(b"ETag") or meta.get("ETag") or b""
            return self._inner.size(), tag.decode() if isinstance(tag, bytes) else str(tag)
        status = os.fstat(self._inner.fileno())
        return status.st_size, str(status.st_mtime_ns)

    @property
    def size_bytes(self) -> int:
        """Size when it was opened."""
        return self.looks[0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            if self._is_apart and self.size_bytes <= FETCHED_WHOLE:
                self._fetch()
            return int(self._inner.readinto(buffer))
        except OSError as error:
            self.failure = error
            raise TransientReadError(f"{self.uri} cannot be read now: {error}") from error

    def _fetch(self) -> None:
        whole = io.BytesIO(self._inner.read_at(self.size_bytes, 0))  # if it fails, the place stays
        whole.seek(self._inner.tell())
        self._inner.close()
        self._inner, self._is_apart = whole, False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        # Not guarded: seeking to an absurd place is the fault of the data that named it, not of the disk.
        return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())

    def close(self) -> None:
        if self._inner is not None and not self.closed:
            self._inner.close()
        super().close()

    def head(self, count: int = 32) -> bytes:
        """Return the first bytes, whatever was read before."""
        place = self.tell()
        self.seek(0)
        data = self.read(count) or b""
        self.seek(place)
        return data

    def has_changed(self, content_hash: str) -> bool:
        """Return whether the content is no longer the one that `content_hash` (leading hex digits) was taken of."""
        if is_remote(self.uri):
            with ShardFile(self.uri, self.options) as now:
                return hash_of_etag(now.looks)[:HASH_CHARS] != content_hash
        if self._look() != self.looks:
            return True
        return not self.sha256().startswith(content_hash)

    def sha256(self) -> str:
        """Return sha256 of the whole file, in hex, which is then read from its start."""
        self.seek(0)
        digest = hashlib.file_digest(self, "sha256").hexdigest()
        self.seek(0)
        return digest


class HeldFile(io.BytesIO):
    """The bytes of a file that are in memory."""

    failure: OSError | None = None
    options: StorageOptions | None = None

    def __init__(self, data: bytes, uri: str) -> None:
        super().__init__(data)
        self.size_bytes, self.uri = len(data), uri


def read_manifest(uri: str, options: StorageOptions | None) -> tuple[ShardManifest, str]:
    """Return the manifest of the folder at `uri` and the sha256 of its bytes, which is the content hash
    of the shard."""
    with ShardFile(join(uri, MANIFEST_NAME), options) as file:
        data = file.readall() or b""
    return ShardManifest.from_bytes(data), hashlib.sha256(data).hexdigest()


def hash_of_etag(looks: tuple[int, str]) -> str:
    """Return a content hash for an object, without fetching it: sha256 of its size and entity tag."""
    return hashlib.sha256(f"{looks[0]}:{looks[1]}".encode()).hexdigest()
