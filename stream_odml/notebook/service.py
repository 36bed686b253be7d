"""A stream through its running service, by the typed client."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from stream_odml.client import Client, NewImage, ServiceError
from stream_odml.client.calls import Options
from stream_odml.ingest.folder_scan import scan_folder
from stream_odml.ingest.reading import RawItem, read_folder
from stream_odml.notebook.results import Item, Items, Version, Versions
from stream_odml.notebook.stream import Asked, Stream, Subject

BATCH = 64
"""Images of a push."""
MAX_ITEMS = 20_000
"""Items that a service names at once."""


class ServiceStream(Stream):
    """Asks a service."""

    def __init__(self, url: str, token: str | None) -> None:
        """Raise ServiceUnreachable, and ServiceError where the service wants another token."""
        self._url, self._client = url, Client(url, token)
        self._client.status()

    def _search(self, subject: Subject, asked: Asked) -> Items:
        given = {name: value for name, value in asked._asdict().items() if value is not None}
        options = cast(Options, {name: given[name] for name in given if name != "version"})
        if isinstance(subject, bytes):
            found = self._client.search_image(subject, **options)
        else:
            found = self._client.search_vector(subject, asked.version, **options)
        items = tuple(
            Item(h.item_id, h.class_name, h.shard, h.version, h.time, h.attributes, h.score)
            for h in found.hits
        )
        return Items(items, found.version, self._picture, subject if isinstance(subject, bytes) else None)

    def items(self, class_name: str | None = None, limit: int = 1000) -> Items:
        if limit > MAX_ITEMS:
            raise ValueError(
                f"a service names at most {MAX_ITEMS:,} items, not {limit:,}; open the stream root"
            )
        sample = self._client.sample(max(3, limit), class_name)
        items = tuple(Item(item_id, name, "", "") for item_id, name in sample.items[:limit])
        return Items(items, sample.version, self._picture)

    @property
    def versions(self) -> Versions:
        tree = self._client.versions()
        return Versions(
            Version(v.id, v.parent, v.task, v.committed, v.id == tree.head, v.metrics) for v in tree.versions
        )

    def add(self, path: str | Path, name: str | None = None) -> list[str]:
        path = Path(path)
        if not path.is_dir():
            raise ValueError(
                f"{path} is no folder of class folders, which is what a service takes; land a file in the stream's "
                "inbox, or open the stream root"
            )
        batches = _batches(path)
        return [self._client.push(images, key).shard for images, key in batches]

    def export(self, to: str | Path, formats: Sequence[str] | None = None) -> list[str]:
        raise ValueError("a service gives no whole gallery; open the stream root to export it")

    def _facts(self) -> dict[str, str]:
        status = self._client.status()
        counts: dict[str, str] = {name: str(status[name]) for name in ("items", "classes") if name in status}
        return {"service": self._url, "head": str(status.get("version")), **counts}

    def _picture(self, item: Item) -> bytes | None:
        with contextlib.suppress(ServiceError):
            return self._client.thumbnail(item.item_id)
        return None


def _batches(folder: Path) -> Iterator[tuple[list[NewImage], str]]:
    """Yield images of a folder, some at a time, each with a key of what they are: a repetition lands nothing twice."""
    images: list[NewImage] = []
    digest = hashlib.sha256()
    rows = (row for row in read_folder(folder, scan_folder(folder).files) if isinstance(row, RawItem))
    for row in rows:
        images.append(NewImage(row.image, row.class_name, None, row.attributes, row.time))
        digest.update(repr((row.class_name, sorted(row.attributes.items()))).encode() + row.image)
        if len(images) == BATCH:
            yield images, digest.hexdigest()
            images, digest = [], hashlib.sha256()
    if images:
        yield images, digest.hexdigest()
