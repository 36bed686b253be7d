"""Shards below an S3 prefix. An object is complete when it is there; a folder when its manifest is.

The identity of an object is its name, size and entity tag, so that nothing is fetched to see what is new. Requests are
retried with growing pauses by the client (`storage.RETRY_ATTEMPTS`), also when the store throttles (503 SlowDown).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container
from itertools import islice
from typing import Any

import pyarrow.fs as pafs

from stream_odml.ingest.passed_over import is_foreign_shard
from stream_odml.ingest.reasons import BadShard, TransientReadError
from stream_odml.ingest.shard import MANIFEST_NAME, ShardRef, format_of, is_hidden, make_shard_id
from stream_odml.ingest.shard_file import ShardFile, hash_of_etag
from stream_odml.ingest.sources import MAX_NEW, landing_order, read_note
from stream_odml.storage.reading import StorageOptions, check_bucket, join, s3_filesystem, s3_path
from stream_odml.storage.refusals import NO_BUCKET, store_words

log = logging.getLogger(__name__)


class S3Source:
    """`s3://bucket/prefix`. Listing costs one request a 1,000 names. A folder's stamp is its name, since a listing says
    nothing else of it: land a fixed folder under a new name."""

    def __init__(self, uri: str, options: StorageOptions | None = None) -> None:
        if not uri.startswith("s3://"):
            raise ValueError(f"{uri!r}: expected s3://bucket/prefix")
        check_bucket(uri)
        self.uri = uri.rstrip("/")
        self.options = options
        self._filesystem = s3_filesystem(options)

    def poll(self, known: Container[str]) -> list[ShardRef]:
        """See `Source`. Order: `landing_order`; of a backlog, folders come first: a listing gives them no date. Raises
        TransientReadError where the store cannot be listed."""
        everything = pafs.FileSelector(s3_path(self.uri), allow_not_found=True)
        try:
            listed = self._filesystem.get_file_info(everything)
        except OSError as error:
            raise TransientReadError(f"{self.uri} cannot be listed now: {store_words(error)}") from error
        if not listed:
            self._check_there()
        unknown = (info for info in listed if stamp_of(info) not in known and not is_hidden(info.base_name))
        folder = pafs.FileType.Directory
        new = [info for info in unknown if not is_foreign_shard(info.base_name, info.type == folder)]
        del listed
        new.sort(key=lambda info: (info.mtime_ns or 0, info.base_name))
        found = (ref for info in new if (ref := self._describe(info)) is not None)
        return sorted(islice(found, MAX_NEW), key=landing_order)

    def _check_there(self) -> None:
        """Raise TransientReadError where there is no such bucket: a listing finds nothing in it, as in an empty one."""
        bucket = s3_path(self.uri).partition("/")[0]
        try:
            is_lost = self._filesystem.get_file_info(bucket).type == pafs.FileType.NotFound
        except OSError:  # who may list a prefix alone is not told whether the bucket is there
            return
        if is_lost:
            raise TransientReadError(f"{self.uri} cannot be listed now: {NO_BUCKET}")

    def _describe(self, info: Any) -> ShardRef | None:
        name, uri, seen = info.base_name, join(self.uri, info.base_name), info
        is_folder = info.type == pafs.FileType.Directory
        format = "folder" if is_folder else format_of(name)
        place = join(uri, MANIFEST_NAME) if is_folder else uri
        if is_folder:
            seen = self._filesystem.get_file_info(s3_path(place))
            if seen.type == pafs.FileType.NotFound:
                return None
        try:
            with ShardFile(place, self.options) as file:
                data = file.readall() or b"" if format in ("folder", "task") else b""
                sha256 = hashlib.sha256(data).hexdigest() if is_folder else hash_of_etag(file.looks)
                note, size = read_note(data, file.size_bytes) if data else (None, file.size_bytes)
                if file.size_bytes != seen.size:
                    return None  # replaced since it was listed: the next poll sees it as it is now
        except (TransientReadError, BadShard) as error:  # BadShard: gone since it was listed
            log.warning("%s cannot be read now and will be tried again: %s", uri, error)
            return None
        shard_id, time_ns = make_shard_id(name, sha256), seen.mtime_ns or 0
        return ShardRef(shard_id, name, uri, format, size, time_ns, stamp_of(info), note)


def stamp_of(info: Any) -> str:
    """Return name, size and time of change of a listed object; the name alone of a folder."""
    if info.type == pafs.FileType.Directory:
        return f"{info.base_name}/"
    return f"{info.base_name}|{info.size}|{info.mtime_ns}"
