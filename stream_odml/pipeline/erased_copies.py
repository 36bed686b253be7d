"""Landed shards, in an inbox or pushed, that hold the images of what was erased.

Protects: an image is its item's, whatever class a label moved the item to: it goes with the class that the item had
when that was erased, and not with one that it had before.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
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
    options: StorageOptions | None = None,
) -> dict[str, set[str]]:
    """Return the shards of ``covered`` whose landed files hold what the tombstone erased, each with the shards that
    are to be learnt before it may be deleted: itself, and of labels those with the images that they were put on."""
    found: dict[str, set[str]] = {}
    labelled: dict[str, set[str]] = {}
    for shard in covered.values():
        if touches(shard, tombstone):
            items, labels = _items(shard, partial(_bears, tombstone), options)
            if tombstone.kind == "class" and items:
                items -= _living(store, shard, tombstone.name, items, options)
                for item in labels & items:
                    labelled.setdefault(item, set()).add(shard.shard_id)
            if items:
                found[shard.shard_id] = {shard.shard_id}
    for shard in _with_images(labelled, covered):
        items, labels = _items(shard, lambda row: row.item_id in labelled, options)
        for item in items - labels:
            found.setdefault(shard.shard_id, {shard.shard_id})
            for label in labelled[item]:
                found[label].add(shard.shard_id)
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


def _items(
    shard: ShardState, wanted: Callable[[RawItem], bool], options: StorageOptions | None
) -> tuple[set[str], set[str]]:
    """The wanted items of a landed file, and those of them that are labels."""
    items: set[str] = set()
    labels: set[str] = set()
    if shard.format == "task":
        return items, labels
    ref = ShardRef.from_dict(json.loads(json.dumps(dict(shard.detail))))
    try:
        # To its end, where its hash is compared: what is found here may be deleted.
        for row in read_shard(ref, options):
            if isinstance(row, RawItem) and wanted(row):
                items.add(row.item_id)
                if _is_label(row):
                    labels.add(row.item_id)
    except (BadShard, io.UnsupportedOperation):
        return set(), set()  # gone, or not the bytes that landed: nothing here that could be named
    return items, labels


def _bears(tombstone: Tombstone, row: RawItem) -> bool:
    names = {"class": row.class_name, "item": row.item_id}
    return tombstone.kind == "shard" or names[tombstone.kind] == tombstone.name


def _is_label(row: RawItem) -> bool:
    return row.vector is None and not row.image


def _living(
    store: Store, shard: ShardState, class_name: str, items: set[str], options: StorageOptions | None
) -> set[str]:
    """Those of the items that a label had moved from the class before it was erased."""
    named = dict.fromkeys(items, class_name)
    moved = moved_away(shard.shard_id, named, store.again(store.metadata), store.ledger, store.tree)
    shards = {at: store.ledger.shards[at] for at in set(moved.values())}
    # A shard of an earlier release: only its file tells a label from another image.
    unnoted = [at for at, state in shards.items() if images_of(state.counts) is None]
    images = {at for at in unnoted if not _items(shards[at], _is_label, options)[1]}
    return {item for item, at in moved.items() if at not in images}


def _with_images(labelled: Mapping[str, set[str]], covered: Mapping[str, ShardState]) -> Iterable[ShardState]:
    """The shards that may hold the images of these items, which these shards of labels name."""
    for shard_id, shard in covered.items():
        for label in {label for labels in labelled.values() for label in labels}:
            of = images_of(covered[label].counts)
            if shard_id in of if of is not None else shard.landed_seq < covered[label].landed_seq:
                yield shard
                break
