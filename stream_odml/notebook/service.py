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
from stream_odml.ingest.landing_folder import whole_shard_id
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
        """Push a folder of class folders. What `ingest` landed of the same folder is passed over once it is indexed,
        unless files came or went since: then all of the folder, which no service can compare, lands beside it."""
        path = Path(path)
        if not path.is_dir():
            raise ValueError(
                f"{path} is no folder of class folders, which is what a service takes; land a file in the stream's "
                "inbox, or open the stream root"
            )
        batches = _batches(self._new_items(path, name))
        return [self._client.push(images, key).shard for images, key in batches]

    def _new_items(self, folder: Path, name: str | None) -> Iterator[NewImage]:
        """Yield images of a folder, but for those that `ingest`, or the stream root opened, has landed of it as it is
        now: a service tells those by their ids, once they are indexed."""
        files = scan_folder(folder).files
        shard_id = whole_shard_id(folder, files, name)
        for row in read_folder(folder, files, shard_id):
            if not isinstance(row, RawItem):
                continue
            # An id that the folder gives says nothing of the image: what has it is replaced.
            item_id = None if row.item_id == f"{shard_id}/{row.row}" else row.item_id
            if item_id is not None or not self._has(row.item_id):
                yield NewImage(row.image, row.class_name, item_id, row.attributes, row.time)

    def _has(self, item_id: str) -> bool:
        try:
            self._client.get(item_id)
        except ServiceError as error:
            if error.status != 404:
                raise
            return False
        return True

    def export(self, to: str | Path, formats: str | Sequence[str] | None = None) -> list[str]:
        raise ValueError("a service gives no whole gallery; open the stream root to export it")

    def _facts(self) -> dict[str, str]:
        status = self._client.status()
        counts: dict[str, str] = {name: str(status[name]) for name in ("items", "classes") if name in status}
        return {"service": self._url, "head": str(status.get("version")), **counts}

    def _picture(self, item: Item) -> bytes | None:
        with contextlib.suppress(ServiceError):
            return self._client.thumbnail(item.item_id)
        return None


def _batches(items: Iterator[NewImage]) -> Iterator[tuple[list[NewImage], str]]:
    """Yield images, some at a time, each with a key of what they are: a repetition lands nothing twice."""
    images: list[NewImage] = []
    digest = hashlib.sha256()
    for item in items:
        images.append(item)
        said = (item.class_name, sorted(item.attributes.items()), *([item.item_id] if item.item_id else []))
        digest.update(repr(said).encode() + cast(bytes, item.image))
        if len(images) == BATCH:
            yield images, digest.hexdigest()
            images, digest = [], hashlib.sha256()
    if images:
        yield images, digest.hexdigest()
