"""Landed shards, in an inbox or pushed, that hold the images of what was erased.

Protects: an image is its item's, whatever class a label moved the item to: it goes with the class that the item had
when that was erased, and not with one that it had before.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import partial

from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import BadShard
from stream_odml.ingest.shard import ShardRef
from stream_odml.storage.reading import StorageOptions
from stream_odml.store.labels import images_of
from stream_odml.store.ledger_states import ShardState, Tombstone
from stream_odml.store.pictures import moved_away
from stream_odml.store.store import Store


def landed_copies(
    store: Store,
    tombstone: Tombstone,
    covered: Mapping[str, ShardState],
    options: StorageOptions | None,
) -> dict[str, set[str]]:
    """Return the shards of `covered` whose landed files hold what the tombstone erased, each with the shards that
    are to be learnt before it may be deleted: itself, and of labels those with the images that they were put on."""
    found: dict[str, set[str]] = {}
    labelled: dict[str, set[str]] = {}
    with_images: set[str] = set()
    for shard in covered.values():
        items = _items(shard, partial(_bears, tombstone), options) if touches(shard, tombstone) else set()
        if tombstone.kind == "class" and items:
            items -= moved_away(store, shard.shard_id, items)
            images = images_of(shard.counts) or set()
            for item in items if images else ():
                labelled.setdefault(item, set()).add(shard.shard_id)
                with_images |= images
        if items:
            found[shard.shard_id] = {shard.shard_id}
    for shard_id in with_images & covered.keys():
        for item in _items(covered[shard_id], lambda row: row.item_id in labelled, options):
            found.setdefault(shard_id, {shard_id})
            for label in labelled[item]:
                found[label].add(shard_id)
    return found


def touches(shard: ShardState, tombstone: Tombstone) -> bool:
    """Return whether rows of a shard may bear the name, as the ledger has it."""
    return tombstone.kind != "class" or tombstone.name in shard.classes


def is_needed(store: Store, shard: ShardState) -> bool:
    """Return whether a task has still to learn from a shard."""
    return (shard.task or "") not in store.tree.learnt() and not is_skipped(store, shard)


def is_skipped(store: Store, shard: ShardState) -> bool:
    """Return whether nothing waits for the images of a shard that was not learnt."""
    if shard.task is None:
        return shard.state == "set_aside"
    return shard.task not in store.tree.learnt() and store.ledger.tasks[shard.task].skipped is not None


def _items(shard: ShardState, wanted: Callable[[RawItem], bool], options: StorageOptions | None) -> set[str]:
    if shard.format == "task":
        return set()
    ref = ShardRef.from_dict(json.loads(json.dumps(dict(shard.detail))))
    try:
        # To its end, where its hash is compared: what is found here may be deleted.
        return {row.item_id for row in read_shard(ref, options) if isinstance(row, RawItem) and wanted(row)}
    except (BadShard, io.UnsupportedOperation):
        return set()  # gone, or not the bytes that landed: nothing here that could be named


def _bears(tombstone: Tombstone, row: RawItem) -> bool:
    names = {"class": row.class_name, "item": row.item_id}
    return tombstone.kind == "shard" or names[tombstone.kind] == tombstone.name
