"""Changing the backbone: a root is taken over into another one whose model is new, each item by a map of its feature.

Protects: nothing is made before it is known what recall is to be expected; the old root is only read, so that going
back is serving it again. The same command, repeated, takes over what came to the old root since, each item once. Shards
keep their names and rows: the new stream does not index them again, and embeds those whose images can be read in the
background, the worst first, like items that a moved trunk left behind. However the old root went on, an upgrade that is
repeated maps from the same trunk to the same model by the same map, and erases what the old root erased meanwhile.
"""

# n pairs or items   D old feature   F new feature

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.exchange.adopting import Report, adopt
from stream_odml.exchange.adopting import fitted as fitted_config
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.expectation import (
    MAX_ITEMS,
    OldItems,
    class_means,
    expected_recalls,
    settings_by_pairs,
)
from stream_odml.exchange.pairs import Pairs, embed_pairs
from stream_odml.exchange.source import ATTRIBUTES, CLASS, ID, ROW, VECTOR, Block, as_lists, rows_at_once
from stream_odml.exchange.stored_items import StoredItems, indexed_at
from stream_odml.exchange.worst_first import Examiner, Worst, worst_of_shards
from stream_odml.ingest.reading import UNLABELLED
from stream_odml.ingest.served_vectors import Origin
from stream_odml.learn.cross_map import CrossMap, choose_cross_map, fit_cross_map
from stream_odml.learn.discriminant import HeadSettings
from stream_odml.pipeline.first_version import root_there
from stream_odml.pipeline.messages import shard_ref
from stream_odml.storage.files import SMALL_FILE, Files, open_files
from stream_odml.storage.reading import scheme_of
from stream_odml.store.erasure import forget_in_banks
from stream_odml.store.layout import UPGRADE
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums
from stream_odml.store.writer import Writer

if TYPE_CHECKING:
    from stream_odml.learn.embedder import Embedder


MAP = f"{UPGRADE}/map.safetensors"
"""The map by which items were taken over; written last."""
ABOUT = f"{UPGRADE}/begun.json"


@dataclass(frozen=True)
class Begun:
    """An upgrade that has begun. A map that is fitted again, from other pairs or on another machine, would be another
    one: the one that is kept goes on."""

    stream: str
    version: str
    """Of the old root, from whose trunk the map leads."""
    model: str
    """Digest of the weights that it leads to."""
    seq: int
    """Row of the old root's ledger up to which erasures are taken over."""
    map_bytes: bytes

    @staticmethod
    def read(files: Files) -> Begun | None:
        """Return what a root says; None where none has begun. Raises ExchangeError for what cannot be read."""
        if not files.exists(MAP):
            return None
        try:
            about = json.loads(files.read(ABOUT, SMALL_FILE))
            stream, version, model = (str(about[name]) for name in ("stream", "version", "model"))
            return Begun(stream, version, model, int(about["seq"]), files.read(MAP))
        except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
            raise ExchangeError(
                f"{files.uri} holds an upgrade that another release began, or {ABOUT} is damaged ({error}); name a "
                "new root, or remove that one"
            ) from None

    def write(self, files: Files) -> None:
        """Note it in a root."""
        about = {"stream": self.stream, "version": self.version, "model": self.model, "seq": self.seq}
        files.write(ABOUT, json.dumps(about).encode())
        files.write(MAP, self.map_bytes)

    @property
    def cross_map(self) -> CrossMap:
        """The map."""
        return CrossMap.from_bytes(self.map_bytes)

    def check(self, old: Store, model: str | None, root: str) -> None:
        """Raise ExchangeError unless `root` can go on from this old root, to this model where it is known."""
        remedy = "name a new root, or remove that one"
        if old.stream_id != self.stream:
            raise ExchangeError(f"{root} was begun by an upgrade of another stream than {old.uri}; {remedy}")
        if model is not None and model != self.model:
            raise ExchangeError(f"{root} was begun by an upgrade to another model; {remedy}")
        kept = old.tree.versions.get(self.version)
        if kept is None or kept.retired:
            raise ExchangeError(
                f"{root} was begun from version {self.version}, which {old.uri} has not kept (store.keep_versions): "
                f"what came since cannot be mapped as the rest was; {remedy}"
            )


def erase_since(seq: int, old: Store, config: StreamConfig) -> None:
    """Forget in the new root what the old one forgot after row `seq` of its ledger."""
    later = [tombstone for tombstone in old.ledger.tombstones if tombstone.seq > seq]
    if not later:
        return
    writer = Writer.claim(
        config.root, "upgrade", lease_s=config.store.lease_s, storage_options=config.storage_options
    )
    try:
        for one in later:
            known = [own for own in writer.ledger.tombstones if (own.kind, own.name) == (one.kind, one.name)]
            if any(own.time >= one.time for own in known):
                continue  # by an attempt that was killed before it could say so
            writer.forget(one.kind, one.name, one.items)
        forget_in_banks(writer)
        forget_in_sums(writer)
    finally:
        writer.release()


Floats = NDArray[np.float32]
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
    settings: HeadSettings | None = None
    """Of the head, where pairs have chosen them."""

    def adopt(self, progress: Callable[[int, int | None], None] = lambda done, total: None) -> Report:
        """Take the items over. After whatever ended it, the next one goes on, by the map that this one has kept."""
        files, store = open_files(self.config.root, self.config.storage_options), self.source.store
        begun = Begun.read(files)
        source = self.source.drawn(self.within)
        if begun is not None:
            begun.check(store, self.model, self.config.root)
            source = self.source.by(begun.cross_map)
            erase_since(begun.seq, store, self.config)
        Begun(store.stream_id, self.source.version, self.model, store.ledger.seq, source.map_bytes).write(
            files
        )
        return adopt(source, self.config, settings=self.settings, progress=progress)


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
    begun = Begun.read(open_files(config.root, config.storage_options))
    version = old.tree.head if begun is None else begun.version
    if begun is not None:
        begun.check(old, None, config.root)
    before = load_model(old, version)
    if before.takes_vectors or config.model.takes_vectors:
        raise ExchangeError("a stream of vectors has no model to change; adopt the new vectors")
    stored = StoredItems(old, version)
    after = build_embedder(config.model, config.seed).eval()
    model = _weights_of(after)
    if begun is not None:
        begun.check(old, model, config.root)
    pairs, seconds = embed_pairs(stored, images, before, after, config.ingest.max_pixels, config.seed)
    return planned(stored, pairs, config, seconds, model)


def planned(
    stored: StoredItems, pairs: Pairs, config: StreamConfig, seconds_an_image: float, model: str = ""
) -> Upgrade:
    """Fit the map to pairs and measure what to expect. Raises ConfigError where the new stream could not take it."""
    choice = choose_cross_map(pairs.old_nD, pairs.new_nF, pairs.classes, config.seed)
    fitted = fit_cross_map(pairs.old_nD, pairs.new_nF, pairs.classes, config.seed, choice)
    source = MappedRoot(stored, fitted, pairs)
    fitted_config(config, source, root_there(config))
    settings = settings_by_pairs(pairs, config, source.count)
    sample = stored.sample(MAX_ITEMS, config.seed)
    recalls = expected_recalls(pairs, sample, config, choice, fitted, settings)
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
    return Upgrade(source, expected, config, recalls.within, model, settings)


def _weights_of(model: Embedder) -> str:
    """Return a digest of a model's weights, wherever their file lies."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(weights.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _is_same(new: str, old: str) -> bool:
    """Return whether two roots are one, whichever way local folders are spelt."""
    if scheme_of(new) or scheme_of(old):
        return new.rstrip("/") == old.rstrip("/")
    return Path(new).resolve() == Path(old).resolve()


class MappedRoot:
    """A `GallerySource`: items of a root by features of another model, its own for pairs, predicted for the rest."""

    note = ""
    origin: Origin | None = None

    def __init__(self, stored: StoredItems, cross: CrossMap, pairs: Pairs) -> None:
        self._stored, self._cross, self._pairs = stored, cross, pairs
        store = self.store = stored.store
        self.version = stored.version
        """Of the old root: under whose trunk the map takes features."""
        self.name, self.count = store.uri, len(stored)
        self.dim = len(cross.b_F)
        self.map_bytes = cross.to_bytes()
        # Not of the moment: while the old root goes on, it is one upgrade.
        said = f"{store.stream_id} {stored.version} ".encode() + self.map_bytes
        self.identity = hashlib.sha256(said).hexdigest()[:16]

    @property
    def exact(self) -> int:
        """Rows that are pairs."""
        return sum(bool(item) for item in self._pairs.ids)

    def by(self, cross: CrossMap) -> MappedRoot:
        """Return the same items by another map."""
        return MappedRoot(self._stored, cross, self._pairs)

    def drawn(self, within: float) -> MappedRoot:
        """Return the items with `within` of their deviation from the mean of their class; exact ones stay."""
        size = rows_at_once(self.dim)
        ranges = ((at, min(at + size, self.count)) for at in range(0, self.count, size))
        parts = (self._mapped(start, end) for start, end in ranges)
        named = ((items.classes != UNLABELLED, items, new_nF) for items, new_nF in parts)
        means = class_means((new_nF[some], items.classes[some].tolist()) for some, items, new_nF in named)
        return self.by(self._cross.drawn_to(means, within))

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """Yield blocks; a cursor says when a shard was indexed, and a number of a row of it. A block is a shard, but
        for one of more rows than can be taken over at once."""
        (indexed, row), worst = cursor or (-1, 0), self._worst
        most = max(rows_at_once(self.dim), SHARD_BYTES // (4 * self.dim))
        for shard, first, end in self._stored.shards:
            if indexed_at(shard) < indexed:
                continue
            begin = first
            if indexed_at(shard) == indexed:
                begin += int(np.searchsorted(self._stored.numbers(first, end), row))
            ref = replace(shard_ref(shard), erases=()) if end - first <= most else None
            for at in range(begin, end, most) if first < end else (first,):
                following = min(at + most, end)
                new_nF = self._mapped(at, following)[1]
                table = self._table(self._stored.rows_only(at, following), new_nF)
                # Behind a whole shard: whatever is indexed later.
                after = (indexed_at(shard) + 1, 0)
                if following < end:
                    after = indexed_at(shard), int(self._stored.numbers(following, following + 1)[0])
                yield Block(table, list(after), ref, *worst[shard.shard_id])

    @cached_property
    def _worst(self) -> dict[str, Worst]:
        exact, count, size = frozenset(self._pairs.ids) - {""}, self.count, rows_at_once(self.dim)
        examine, rows_n = Examiner(self._cross, self._pairs), np.zeros(count, np.int64)
        missed_n, rivalry_n = np.zeros(count, np.float32), np.zeros(count, np.float32)
        for at in range(0, count, size):
            rows, h_nD = self._stored.rows(at, min(at + size, count))
            names, ids = (rows[column].to_pylist() for column in ("class_name", "item_id"))
            block = slice(at, at + size)
            missed_n[block], rivalry_n[block] = examine(h_nD, names)
            missed_n[block][[item in exact for item in ids]] = 0
            rows_n[block] = rows["row"].to_numpy()
        places = {shard.shard_id: (start, end) for shard, start, end in self._stored.shards}
        return worst_of_shards(missed_n, rivalry_n, rows_n, places)

    def _mapped(self, start: int, end: int) -> tuple[OldItems, Floats]:
        rows, h_nD = self._stored.rows(start, end)
        classes, ids = (np.array(rows[name].to_pylist(), np.str_) for name in ("class_name", "item_id"))
        items = OldItems(h_nD, classes, ids)
        return items, items.mapped(self._cross, self._pairs)

    def _table(self, rows: pa.Table, new_nF: Floats) -> pa.Table:
        attributes = [list(json.loads(text or "{}").items()) for text in rows["attributes"].to_pylist()]
        return pa.table(
            {
                VECTOR: as_lists(new_nF),
                ID: rows["item_id"].cast(pa.string()),
                CLASS: rows["class_name"].cast(pa.string()),
                ROW: rows["row"],
                ATTRIBUTES: pa.array(attributes, pa.map_(pa.string(), pa.string())),
            }
        )
