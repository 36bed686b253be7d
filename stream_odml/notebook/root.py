"""A stream root looked at directly: no stream need run, and one that does is not disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from stream_odml.config.masking import masked_text
from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.exchange.exporting import export
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.fields import attribute_value, normalised
from stream_odml.ingest.landing import land_file
from stream_odml.ingest.landing_folder import land_plan, plan_folder
from stream_odml.learn.embedder import Embedder, embed
from stream_odml.learn.given_vectors import spec_of
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.models.loading import load_model
from stream_odml.notebook.results import Item, Items, Version, Versions
from stream_odml.notebook.stream import Asked, Stream, Subject
from stream_odml.search.filters import Filters
from stream_odml.search.hits import Hit
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.service.thumbnails import Thumbnails
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.layout import PUSH
from stream_odml.store.store import Store


class RootStream(Stream):
    """Reads a root. Not for use by several threads at once."""

    def __init__(self, root: str, storage_options: dict[str, str] | None) -> None:
        """Raise NotAStreamRoot, UnfinishedBackup, SchemaTooNew."""
        self._options = storage_options
        self._store = Store.open(root, storage_options)
        self._thumbnails = Thumbnails(self._store.files)
        self._snapshot: GallerySnapshot | None = None
        self._model: tuple[str, Embedder] | None = None
        self._named: tuple[str, EmbedderSpec] | None = None

    def _search(self, subject: Subject, asked: Asked) -> Items:
        snapshot = self._now()
        if isinstance(subject, bytes):
            vector, version = self._embedded(snapshot, subject), snapshot.version
        else:
            vector, version = subject[None], snapshot.tree.named(asked.version or snapshot.version)
            if asked.version is None and self._spec(version).takes_vectors:  # as it is pushed
                vector = snapshot.space.embeddings(vector)
        filters = Filters(
            None if asked.classes is None else frozenset(map(normalised, asked.classes)),
            {normalised(name): attribute_value(text) for name, text in dict(asked.attributes or {}).items()},
            asked.after,
            asked.before,
        )
        (hits,) = snapshot.search(vector, version, asked.k, filters or None)
        items = tuple(_item(hit, hit.score) for hit in hits)
        return Items(items, snapshot.version, self._picture, subject if isinstance(subject, bytes) else None)

    def items(self, class_name: str | None = None, limit: int = 1000) -> Items:
        snapshot = self._now()
        filters = None if class_name is None else Filters(frozenset({normalised(class_name)}))
        rows = islice(snapshot.rows(filters).tolist(), limit)
        return Items(tuple(_item(snapshot.item(row), None) for row in rows), snapshot.version, self._picture)

    @property
    def versions(self) -> Versions:
        tree = self._now().tree
        return Versions(
            Version(v.version_id, v.parent, v.task, v.time, v.version_id == tree.head, v.metrics)
            for v in tree.versions.values()
        )

    def add(self, path: str | Path, name: str | None = None) -> list[str]:
        path = Path(path)
        inbox = f"{self._store.uri.rstrip('/')}/{PUSH}"  # which a stream watches whatever its source is
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; name a folder of class folders, a table or a tar"
            )
        if not path.is_dir():
            return [land_file(inbox, path, name, self._options)]
        landed = land_plan(inbox, plan_folder(inbox, path, name, self._options), self._options)
        return [] if landed is None else [landed]

    def export(self, to: str | Path, formats: str | Sequence[str] | None = None) -> list[str]:
        return list(export(self._store.uri, str(to), formats=formats, storage_options=self._options).files)

    def _facts(self) -> dict[str, str]:
        snapshot = self._now()
        classes = {snapshot.columns.name("class_name", int(row)) for row in snapshot.rows()}
        return {
            "root": masked_text(self._store.uri),
            "head": snapshot.version,
            "items": str(len(snapshot)),
            "classes": str(len(classes)),
            "versions": str(len(snapshot.tree.versions)),
        }

    def _now(self) -> GallerySnapshot:
        """Return the gallery as it is now; a look takes microseconds where nothing came."""
        self._store.refresh()
        if self._snapshot is None:
            self._snapshot = GallerySnapshot.load(self._store)
        else:
            self._snapshot = self._snapshot.refreshed(self._store)
        return self._snapshot

    def _embedded(
        self, snapshot: GallerySnapshot, image: bytes
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        if self._spec(snapshot.version).takes_vectors:
            raise ValueError(
                f"{self._store.uri} is a stream of vectors, which embeds no image; search for a vector"
            )
        if self._model is None or not snapshot.tree.same_trunk(self._model[0], snapshot.version):
            self._model = snapshot.version, load_model(self._store, snapshot.version)
        embedder = self._model[1]
        pixels = decode_image(image, embedder.spec.image_size, DEFAULT_MAX_PIXELS)
        return snapshot.space.embeddings(embed(embedder, pixels[None]))

    def _spec(self, version: str) -> EmbedderSpec:
        if self._named is None or self._named[0] != version:
            self._named = version, spec_of(self._store.artifact(version, STUDENT))
        return self._named[1]

    def _picture(self, item: Item) -> bytes | None:
        return self._thumbnails.get(item.shard, item.item_id)


def _item(hit: Hit, score: float | None) -> Item:
    return Item(hit.item_id, hit.class_name, hit.shard_id, hit.version, hit.time, hit.attributes, score)
