"""Changing the backbone: a root is taken over into another one whose model is new, each item by a map of its feature.

Protects: nothing is made before it is known what recall is to be expected; the old root is only read, so that going
back is serving it again. An item whose image the new stream indexes is exact from then on.
"""

# n pairs or items   D old feature   F new feature

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.exchange.adopting import Report, adopt
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.expectation import MAX_ITEMS, OldItems, expected_recalls
from stream_odml.exchange.pairs import Pairs, embed_pairs
from stream_odml.exchange.source import ATTRIBUTES, CLASS, ID, VECTOR, Block, rows_at_once
from stream_odml.ingest.reading import UNLABELLED
from stream_odml.learn.cross_map import CrossMap, choose_cross_map, fit_cross_map
from stream_odml.storage.files import open_files
from stream_odml.store.select import encode as encode_names
from stream_odml.store.select import select_rows
from stream_odml.store.store import Store
from stream_odml.store.trunks import in_one_trunk

Floats = NDArray[np.float32]
MAP = "upgrade/map.safetensors"
"""In the new root: the map by which its items were taken over."""
SAMPLED_AT_ONCE = 8192


@dataclass(frozen=True)
class Expected:
    """Recall@1 to be expected of images of known classes, on pairs that the map was not fitted to."""

    staying: float
    """Under the old model."""
    mapped: float
    """Under the new one, before any item is embedded again."""
    reembedded: float
    """Under the new one, once all are."""
    pairs: int
    map_error: float
    """1 - cosine of what the new head compares, on pairs held out of the fit."""
    items: int
    """That are taken over."""
    exact: int
    """Of them, that are pairs: they are taken over as the new model embedded them."""
    seconds_to_reembed: float
    """Of one process like this one, for all that are mapped."""

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Upgrade:
    """What an upgrade will do: a source for `adopt`, and what is to be expected."""

    source: MappedRoot
    expected: Expected
    config: StreamConfig

    def adopt(self, progress: Callable[[int, int | None], None] = lambda done, total: None) -> Report:
        """Take the items over. After whatever ended it, the next one goes on, by the map that this one has kept."""
        open_files(self.config.root, self.config.storage_options).write(MAP, self.source.map_bytes)
        return adopt(self.source, self.config, progress=progress)


def prepare(root: str, config: StreamConfig, images: Path | None = None) -> Upgrade:
    """Read pairs, fit the map and measure what to expect; makes nothing. `config`: of the new stream, with a root of
    its own. Raises ConfigError, ExchangeError, ValueError."""
    from stream_odml.learn.embedder import build_embedder
    from stream_odml.models.loading import load_model

    old = Store.open(root, config.storage_options)
    if old.form != "exact":
        raise ExchangeError(
            f"{root} stores embeddings, not the features in front of them, which another model's head cannot be solved "
            "of; index its images into a new root"
        )
    if config.root.rstrip("/") == root.rstrip("/"):
        raise ConfigError(
            f"root: {config.root} is the root that is upgraded; name a new one, so that you can go back"
        )
    before = load_model(old, old.tree.head)
    if before.takes_vectors or config.model.takes_vectors:
        raise ExchangeError("a stream of vectors has no model to change; adopt the new vectors")
    stored = StoredItems(old)
    after = build_embedder(config.model, config.seed).eval()
    pairs, seconds = embed_pairs(old, stored.ids, images, before, after, config.ingest.max_pixels)
    return planned(stored, pairs, config, seconds)


def planned(stored: StoredItems, pairs: Pairs, config: StreamConfig, seconds_an_image: float) -> Upgrade:
    """Fit the map to pairs and measure what to expect."""
    choice = choose_cross_map(pairs.old_nD, pairs.new_nF, pairs.classes, config.seed)
    fitted = fit_cross_map(pairs.old_nD, pairs.new_nF, pairs.classes, config.seed, choice)
    source = MappedRoot(stored, _kept_map(config) or fitted, pairs)
    recalls = expected_recalls(pairs, stored.sample(MAX_ITEMS, config.seed), config, choice, fitted)
    expected = Expected(
        *recalls,
        pairs=len(pairs),
        map_error=fitted.error,
        items=source.count,
        exact=source.exact,
        seconds_to_reembed=seconds_an_image * (source.count - source.exact),
    )
    return Upgrade(source, expected, config)


def _kept_map(config: StreamConfig) -> CrossMap | None:
    """The map of an upgrade that began: fitted again on another machine it might differ by rounding."""
    files = open_files(config.root, config.storage_options)
    return CrossMap.from_bytes(files.read(MAP)) if files.exists(MAP) else None


class StoredItems:
    """The living items of a root in exact form, with their features under the trunk of its head."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @cached_property
    def _picked(self) -> tuple[pa.Table, list[tuple[str, NDArray[np.int64], int]]]:
        """Rows that count, and for each data file which of its rows they are, and the number of the first."""
        store = self.store
        meta = store.metadata()
        picked = select_rows(meta, store.ledger, store.tree, store.tree.head).picked
        files, start, first = [], 0, 0
        for path, block in store.blocks.items():
            a, b = np.searchsorted(picked, (start, start + len(block)))
            files.append((path, (picked[a:b] - start).astype(np.int64), first))
            start, first = start + len(block), first + int(b - a)
        return meta.take(pa.array(picked)), files

    def __len__(self) -> int:
        return len(self._picked[0])

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of all."""
        return frozenset(self._picked[0]["item_id"].to_pylist())

    def blocks(self, begin: int, size: int) -> Iterator[tuple[pa.Table, Floats, int]]:
        """Yield rows from number `begin` on, at most `size` at once, their features, and the number that follows."""
        rows, files = self._picked
        made_by, names = encode_names(rows["version"])
        store = self.store
        maps = dict(store.mapper.into(store.tree, names.to_pylist(), store.tree.head))
        drifts = [maps[name] for name in names.to_pylist()]
        for path, places, first in files:
            at = max(begin, first) - first
            stored = store.features(path) if at < len(places) else None
            while stored is not None and at < len(places):
                some = slice(first + at, first + min(at + size, len(places)))
                features = stored[places[at : at + size]]
                h_nD = in_one_trunk(features, made_by[some], drifts).decode()
                yield rows.slice(some.start, len(h_nD)), h_nD, some.stop
                at += size

    def sample(self, most: int, seed: int) -> OldItems:
        """Return labelled items, at random where there are more than `most`."""
        labelled = pc.not_equal(self._picked[0]["class_name"].cast(pa.string()), UNLABELLED).to_numpy()
        chosen = np.flatnonzero(labelled)
        if len(chosen) > most:
            chosen = np.sort(np.random.default_rng(seed).choice(chosen, most, replace=False))
        parts, at = [], 0
        for _, h_nD, following in self.blocks(0, SAMPLED_AT_ONCE):
            parts.append(h_nD[chosen[(chosen >= at) & (chosen < following)] - at])
            at = following
        rows = self._picked[0].take(pa.array(chosen))
        classes, ids = (np.array(rows[name].to_pylist(), np.str_) for name in ("class_name", "item_id"))
        return OldItems(np.concatenate(parts), classes, ids)


class MappedRoot:
    """The items of a root by features of another model, predicted or, of those that are pairs, its own: a
    `GallerySource`."""

    def __init__(self, stored: StoredItems, cross: CrossMap, pairs: Pairs) -> None:
        self._stored, self._cross, self._pairs = stored, cross, pairs
        store = stored.store
        self.name = store.uri
        self.dim = len(cross.b_F)
        self.map_bytes = cross.to_bytes()
        said = f"{store.stream_id} {store.tree.seq} {store.ledger.seq} ".encode() + self.map_bytes
        self.identity = hashlib.sha256(said).hexdigest()[:16]

    @property
    def count(self) -> int:
        """Rows in all."""
        return len(self._stored)

    @property
    def exact(self) -> int:
        """Rows that are pairs."""
        return sum(bool(item) for item in self._pairs.ids)

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """See `GallerySource`; a cursor is a number of rows."""
        for rows, h_nD, following in self._stored.blocks(int(cursor or 0), rows_at_once(self.dim)):
            classes, ids = (np.array(rows[name].to_pylist(), np.str_) for name in ("class_name", "item_id"))
            new_nF = OldItems(h_nD, classes, ids).mapped(self._cross, self._pairs)
            yield Block(self._table(rows, new_nF), following)

    def _table(self, rows: pa.Table, new_nF: Floats) -> pa.Table:
        flat = pa.array(new_nF.reshape(-1))
        attributes = [list(json.loads(text or "{}").items()) for text in rows["attributes"].to_pylist()]
        return pa.table(
            {
                VECTOR: pa.FixedSizeListArray.from_arrays(flat, self.dim),
                ID: rows["item_id"].cast(pa.string()),
                CLASS: rows["class_name"].cast(pa.string()),
                ATTRIBUTES: pa.array(attributes, pa.map_(pa.string(), pa.string())),
            }
        )
