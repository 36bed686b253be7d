"""Small pictures of items, one Parquet file a shard, read once and kept within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from stream_odml.ingest.kept_images import has_images, read_images
from stream_odml.storage.files import Files

KEPT_BYTES = 64 << 20


class Thumbnails:
    """Pictures under ``thumbnails/`` of a stream root. Safe for several threads; blocks on the disk."""

    def __init__(self, files: Files, kept_bytes: int = KEPT_BYTES) -> None:
        self._files, self._room = files, kept_bytes
        self._shards: OrderedDict[str, Mapping[str, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, shard_id: str) -> bool:
        """Return whether thumbnails of this shard are stored."""
        return shard_id in self._shards or has_images(self._files, _path(shard_id))

    def get(self, shard_id: str, item_id: str) -> bytes | None:
        """Return the encoded thumbnail, or None."""
        with self._lock:
            known = self._shards.get(shard_id)
            if known is not None:
                self._shards.move_to_end(shard_id)
        if known is None:
            known = self._read(shard_id)
            self._keep(shard_id, known)
        return known.get(item_id)

    def _read(self, shard_id: str) -> Mapping[str, bytes]:
        return read_images(self._files, _path(shard_id))

    def _keep(self, shard_id: str, pictures: Mapping[str, bytes]) -> None:
        if not pictures:  # perhaps not written yet
            return
        with self._lock:
            self._shards[shard_id] = pictures
            while len(self._shards) > 1 and sum(map(_bytes, self._shards.values())) > self._room:
                self._shards.popitem(last=False)


def _path(shard_id: str) -> str:
    return f"thumbnails/{shard_id}.parquet"


def _bytes(pictures: Mapping[str, bytes]) -> int:
    return sum(map(len, pictures.values()))
