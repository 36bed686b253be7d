"""Changing the backbone: a root is taken over into another one whose model is new, each item by a map of its feature.

Protects: nothing is made before it is known what recall is to be expected; the old root is only read, so that going
back is serving it again. Shards keep their names and rows: the new stream does not index them again, and embeds those
whose images can be read in the background, the worst first, like items that a moved trunk left behind.
"""

# n pairs or items   D old feature   F new feature

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.exchange.adopting import Report, adopt
from stream_odml.exchange.adopting import fitted as fitted_config
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.expectation import MAX_ITEMS, OldItems, class_means, expected_recalls
from stream_odml.exchange.pairs import Pairs, embed_pairs
from stream_odml.exchange.source import ATTRIBUTES, CLASS, ID, ROW, VECTOR, Block, rows_at_once
from stream_odml.exchange.worst_first import shard_errors
from stream_odml.ingest.reading import UNLABELLED
from stream_odml.learn.cross_map import CrossMap, choose_cross_map, fit_cross_map
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.pipeline.messages import shard_ref
from stream_odml.storage.files import open_files
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.select import encode as encode_names
from stream_odml.store.select import select_rows
from stream_odml.store.store import Store
from stream_odml.store.trunks import in_one_trunk

if TYPE_CHECKING:
    from stream_odml.learn.embedder import Embedder

Floats = NDArray[np.float32]
MAP = "upgrade/map.safetensors"
MODEL = "upgrade/model.sha256"
"""Digest of the weights that the map leads to: under others of the same length its items would be in a wrong space."""
"""In the new root: the map by which its items were taken over."""
SAMPLED_AT_ONCE = 8192
SHARD_BYTES = 512 << 20
"""Of predicted features of one shard, at most; a larger one is taken over in parts, whose images nobody can find."""


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
    within: float
    """Share of a mapped item's deviation from the mean of its class that is left."""
    model: str = ""
    """Digest of the new model."""

    def adopt(self, progress: Callable[[int, int | None], None] = lambda done, total: None) -> Report:
        """Take the items over. After whatever ended it, the next one goes on, by the map that this one has kept."""
        kept = _kept_map(self.config, self.model)
        source = self.source.drawn(self.within) if kept is None else self.source.by(kept)
        files = open_files(self.config.root, self.config.storage_options)
        files.write(MODEL, self.model.encode())
        files.write(MAP, source.map_bytes)
        return adopt(source, self.config, progress=progress)


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
    if _is_same(config.root, root):
        raise ConfigError(
            f"root: {config.root} is the root that is upgraded; name a new one, so that you can go back"
        )
    before = load_model(old, old.tree.head)
    if before.takes_vectors or config.model.takes_vectors:
        raise ExchangeError("a stream of vectors has no model to change; adopt the new vectors")
    stored = StoredItems(old)
    after = build_embedder(config.model, config.seed).eval()
    pairs, seconds = embed_pairs(old, stored.ids, images, before, after, config.ingest.max_pixels)
    return planned(stored, pairs, config, seconds, _weights_of(after))


def planned(
    stored: StoredItems, pairs: Pairs, config: StreamConfig, seconds_an_image: float, model: str = ""
) -> Upgrade:
    """Fit the map to pairs and measure what to expect. Raises ConfigError where the new stream could not take it."""
    choice = choose_cross_map(pairs.old_nD, pairs.new_nF, pairs.classes, config.seed)
    fitted = fit_cross_map(pairs.old_nD, pairs.new_nF, pairs.classes, config.seed, choice)
    source = MappedRoot(stored, fitted, pairs)
    fitted_config(config, source)
    recalls = expected_recalls(pairs, stored.sample(MAX_ITEMS, config.seed), config, choice, fitted)
    expected = Expected(
        recalls.staying,
        recalls.mapped,
        recalls.reembedded,
        pairs=len(pairs),
        map_error=fitted.error,
        items=source.count,
        exact=source.exact,
        seconds_to_reembed=seconds_an_image * (source.count - source.exact),
    )
    return Upgrade(source, expected, config, recalls.within, model)


def _weights_of(model: Embedder) -> str:
    """Return a digest of a model's weights, wherever their file lies."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(weights.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _is_same(new: str, old: str) -> bool:
    """Return whether two roots are one, whichever way local folders are spelt."""
    if "://" in new or "://" in old:
        return new.rstrip("/") == old.rstrip("/")
    return Path(new).resolve() == Path(old).resolve()


def _kept_map(config: StreamConfig, model: str) -> CrossMap | None:
    """The map of an upgrade that began: fitted again on another machine it might differ by rounding. Raises
    ExchangeError where it leads to another model."""
    files = open_files(config.root, config.storage_options)
    if not files.exists(MAP):
        return None
    if files.exists(MODEL) and files.read(MODEL).decode() != model:
        raise ExchangeError(
            f"{config.root} was begun by an upgrade to another model; name a new root, or remove that one"
        )
    return CrossMap.from_bytes(files.read(MAP))


class _Picked(NamedTuple):
    rows: pa.Table
    ends: dict[str, int]
    """By shard, in landing order, the number of the row behind its last one."""
    paths: list[str]
    files: NDArray[np.int64]
    """By row, which of `paths` has its features,"""
    places: NDArray[np.int64]
    """and at which place."""


class StoredItems:
    """The living items of a root in exact form, with their features under the trunk of its head, shard by shard in the
    order in which they landed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._last: tuple[str, FeatureCodes] | None = None

    @cached_property
    def _picked(self) -> _Picked:
        """Rows that count, ordered by shard, and where the features of each are."""
        store = self.store
        meta = store.metadata()
        picked = select_rows(meta, store.ledger, store.tree, store.tree.head).picked
        paths = list(store.blocks)
        starts = np.cumsum([0, *(len(block) for block in store.blocks.values())])
        codes, names = encode_names(meta["shard_id"].take(pa.array(picked)))
        landed = np.array([store.ledger.shards[name].landed_seq for name in names.to_pylist()], np.int64)
        by_landing = np.argsort(landed, kind="stable")
        place_of = np.empty(len(names), np.int64)
        place_of[by_landing] = np.arange(len(names))
        order = np.argsort(place_of[codes], kind="stable")
        picked, shard_of = picked[order], place_of[codes][order]
        files = np.searchsorted(starts, picked, side="right") - 1
        shards = [names[int(at)].as_py() for at in by_landing]
        ends = np.searchsorted(shard_of, np.arange(len(shards)), side="right").tolist()
        ended = dict(zip(shards, ends, strict=True))
        return _Picked(meta.take(pa.array(picked)), ended, paths, files, picked - starts[files])

    def __len__(self) -> int:
        return len(self._picked.rows)

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of all."""
        return frozenset(self._picked.rows["item_id"].to_pylist())

    @property
    def shards(self) -> Iterator[tuple[ShardState, int, int]]:
        """All that were indexed, and which rows are of each: none of one whose items were all erased or replaced."""
        start, ends = 0, self._picked.ends
        for shard in sorted(self.store.ledger.shards.values(), key=lambda one: one.landed_seq):
            if shard.shard_id in ends or shard.state in ("indexed", "assigned"):
                end = ends.get(shard.shard_id, start)
                yield shard, start, end
                start = end

    def names(self, column: str) -> list[str]:
        """Return a column of all."""
        found: list[str] = self._picked.rows[column].to_pylist()
        return found

    def rows_only(self, start: int, end: int) -> pa.Table:
        """Return some rows, without their features."""
        return self._picked.rows.slice(start, end - start)

    def rows(self, start: int, end: int) -> tuple[pa.Table, Floats]:
        """Return some rows and their features."""
        picked, rows = self._picked, self.rows_only(start, end)
        made_by, names = encode_names(rows["version"])
        maps = dict(self._maps)
        drifts = [maps[name] for name in names.to_pylist()]
        h_nD = np.empty((len(rows), self.store.dim), np.float32)
        for file in np.unique(picked.files[start:end]):
            mine = picked.files[start:end] == file
            features = self._features(picked.paths[file])[picked.places[start:end][mine]]
            h_nD[mine] = in_one_trunk(features, made_by[mine], drifts).decode()
        return rows, h_nD

    def blocks(self, begin: int, size: int) -> Iterator[tuple[pa.Table, Floats, int]]:
        """Yield rows from number `begin` on, at most `size` at once, their features, and the number that follows."""
        for start in range(begin, len(self), size):
            end = min(start + size, len(self))
            yield *self.rows(start, end), end

    @cached_property
    def _maps(self) -> list[tuple[str, DriftMap]]:
        versions = self._picked.rows["version"].combine_chunks().dictionary.to_pylist()
        return list(self.store.mapper.into(self.store.tree, versions, self.store.tree.head))

    def _features(self, path: str) -> FeatureCodes:
        """Of one file; the last one is kept, as the next shard is often in the same."""
        if self._last is None or self._last[0] != path:
            self._last = path, self.store.features(path)
        return self._last[1]

    def sample(self, most: int, seed: int) -> OldItems:
        """Return labelled items, at random where there are more than `most`."""
        labelled = pc.not_equal(self._picked.rows["class_name"].cast(pa.string()), UNLABELLED).to_numpy()
        chosen = np.flatnonzero(labelled)
        if len(chosen) > most:
            chosen = np.sort(np.random.default_rng(seed).choice(chosen, most, replace=False))
        parts, at = [], 0
        for _, h_nD, following in self.blocks(0, SAMPLED_AT_ONCE):
            parts.append(h_nD[chosen[(chosen >= at) & (chosen < following)] - at])
            at = following
        rows = self._picked.rows.take(pa.array(chosen))
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

    def by(self, cross: CrossMap) -> MappedRoot:
        """Return the same items by another map."""
        return MappedRoot(self._stored, cross, self._pairs)

    def drawn(self, within: float) -> MappedRoot:
        """Return the items with `within` of their deviation from the mean of their class; exact ones stay."""
        if within == 1:
            return self
        size = rows_at_once(self.dim)
        ranges = ((at, min(at + size, self.count)) for at in range(0, self.count, size))
        parts = (self._mapped(start, end) for start, end in ranges)
        named = ((items.classes != UNLABELLED, items, new_nF) for items, new_nF in parts)
        means = class_means((new_nF[some], items.classes[some].tolist()) for some, items, new_nF in named)
        return self.by(self._cross.drawn_to(means, within))

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """See `GallerySource`; a cursor is a number of rows. A block is a shard, but for one of more rows than can be
        taken over at once."""
        begin, errors = int(cursor or 0), self._errors
        most = max(rows_at_once(self.dim), SHARD_BYTES // (4 * self.dim))
        for shard, first, end in self._stored.shards:
            ref = replace(shard_ref(shard), erases=()) if end - first <= most else None
            for at in range(max(first, begin), end, most) if first < end else (first,):
                following = min(at + most, end)
                new_nF = self._mapped(at, following)[1]
                table = self._table(self._stored.rows_only(at, following), new_nF)
                yield Block(table, max(begin, following), ref, errors.get(shard.shard_id, 0.0))

    @cached_property
    def _errors(self) -> dict[str, float]:
        exact = frozenset(item for item in self._pairs.ids if item)
        mapped, rows = dict[str, Counter[str]](), dict[str, int]()
        ids, classes = self._stored.names("item_id"), self._stored.names("class_name")
        for shard, start, end in self._stored.shards:
            mapped[shard.shard_id] = Counter(
                classes[row] for row in range(start, end) if ids[row] not in exact
            )
            rows[shard.shard_id] = end - start
        return shard_errors(mapped, rows, Counter(self._pairs.classes), self._cross.error)

    def _mapped(self, start: int, end: int) -> tuple[OldItems, Floats]:
        rows, h_nD = self._stored.rows(start, end)
        classes, ids = (np.array(rows[name].to_pylist(), np.str_) for name in ("class_name", "item_id"))
        items = OldItems(h_nD, classes, ids)
        return items, items.mapped(self._cross, self._pairs)

    def _table(self, rows: pa.Table, new_nF: Floats) -> pa.Table:
        flat = pa.array(new_nF.reshape(-1))
        attributes = [list(json.loads(text or "{}").items()) for text in rows["attributes"].to_pylist()]
        return pa.table(
            {
                VECTOR: pa.FixedSizeListArray.from_arrays(flat, self.dim),
                ID: rows["item_id"].cast(pa.string()),
                CLASS: rows["class_name"].cast(pa.string()),
                ROW: rows["row"],
                ATTRIBUTES: pa.array(attributes, pa.map_(pa.string(), pa.string())),
            }
        )
