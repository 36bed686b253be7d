"""What a replica serves at one instant: a model and the gallery in that model's space, never one without the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from stream_odml.learn.embedder import Embedder, embed
from stream_odml.models.loading import load_model
from stream_odml.search.feature_cache import FeatureCache
from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.service.backend import ClassRow, VersionHistory
from stream_odml.service.catalogue import class_rows, count_classes
from stream_odml.store.store import Store
from stream_odml.store.tables import FloatArray
from stream_odml.store.unlearnt import unlearnt_tasks


@dataclass(frozen=True, eq=False)
class Bundle:
    """Immutable; queries hold on to the one they began with. `loaded_at` in seconds since the epoch."""

    snapshot: GallerySnapshot
    embedder: Embedder
    loaded_at: float = field(default_factory=time.time)

    @property
    def version(self) -> str:
        """Of the model, and of the space the gallery is in."""
        return self.snapshot.version

    @property
    def sequence(self) -> int:
        """Grows with every commit."""
        return self.snapshot.sequence

    @property
    def committed_at(self) -> float:
        """When the head was moved to this version, in seconds since the epoch."""
        return self.snapshot.tree.moves[-1].time.timestamp()

    def embed(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """Return the embeddings [n, dim] of images uint8 [n, size, size, 3], in the gallery's space."""
        return self.snapshot.space.embeddings(embed(self.embedder, pixels))

    @cached_property
    def class_count(self) -> int:
        """Classes that a living item has; some milliseconds for a million items."""
        return count_classes(self.snapshot)

    @cached_property
    def classes(self) -> Sequence[ClassRow]:
        """Newest first. Takes a pass over all items: made when it is asked for, never on an event loop."""
        return class_rows(self.snapshot)

    @cached_property
    def history(self) -> VersionHistory:
        """The tree of versions, and the tasks that this one has not learnt."""
        seen = self.snapshot
        tasks = [task.as_json() for task in unlearnt_tasks(seen.ledger, seen.tree, seen.version)]
        return VersionHistory(seen.tree, seen.sequence, tasks)


def load_bundle(store: Store, settings: SearchSettings, cache: FeatureCache | None) -> Bundle:
    """Return the first bundle, from `store` as it was last refreshed. Raises NoVersionYet on a root without a model,
    CanaryMismatch where the model does not give what it gave when it was stored. `cache`: of a root in exact form,
    whose gallery is then projected anew without reading its files again."""
    model = _model(store, store.tree.head)  # first, as it may be refused
    return Bundle(GallerySnapshot.load(store, settings, cache=cache), model)


def next_bundle(store: Store, served: Bundle) -> Bundle:
    """Return the bundle after `store.refresh()`; `served` itself if nothing came. CanaryMismatch as above."""
    head = store.tree.head
    model = served.embedder if store.tree.same_trunk(head, served.version) else _model(store, head)
    snapshot = served.snapshot.refreshed(store)
    return served if snapshot is served.snapshot else Bundle(snapshot, model)


def _model(store: Store, version: str) -> Embedder:
    embedder = load_model(store, version)
    if embedder.takes_vectors:
        return embedder
    with torch.inference_mode():  # the first query must not pay for lazy initialisation
        size = embedder.spec.image_size
        embedder(torch.zeros(1, 3, size, size))
    return embedder
