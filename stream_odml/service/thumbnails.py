"""Small pictures of items, one Parquet file a shard, read once and kept within a bound."""

from __future__ import annotations

from collections.abc import Mapping

from stream_odml.ingest.kept_images import has_images, read_images
from stream_odml.storage.files import Files
from stream_odml.store.recent import Recent

KEPT_BYTES = 64 << 20


class Thumbnails:
    """Pictures under `thumbnails/` of a stream root. Safe for several threads; blocks on the disk."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._shards: Recent[str, Mapping[str, bytes]] = Recent(
            KEPT_BYTES, size=lambda pictures: sum(map(len, pictures.values()))
        )

    def has(self, shard_id: str) -> bool:
        """Return whether thumbnails of this shard are stored."""
        return shard_id in self._shards or has_images(self._files, _path(shard_id))

    def get(self, shard_id: str, item_id: str) -> bytes | None:
        """Return the encoded thumbnail, or None."""
        known = self._shards.find(shard_id)
        if known is None:
            known = read_images(self._files, _path(shard_id))
            if known:  # else perhaps not written yet
                self._shards.keep(shard_id, known)
        return known.get(item_id)


def _path(shard_id: str) -> str:
    return f"thumbnails/{shard_id}.parquet"
