"""What must hold after any fault: nothing missing, nothing phantom, nothing twice; all tables agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from stream_odml.gallery.artifacts import BANK
from stream_odml.gallery.select import select_rows
from stream_odml.gallery.store import Store
from stream_odml.learn.bank import ClassBank


def violations(store: Store, landed: Mapping[str, str], learnt_shards: int | None = None) -> list[str]:
    """Every broken promise in words. ``landed``: class by item id; ``learnt_shards``: how many must be learnt."""
    found = [*_gallery(store, landed), *_stages(store, learnt_shards), *_bank(store)]
    unindexed = [shard.name for shard in store.ledger.shards.values() if shard.indexed_seq is None]
    return found + [f"shard {name} is not indexed" for name in unindexed]


def _gallery(store: Store, landed: Mapping[str, str]) -> list[str]:
    rows = store.gallery_rows(vectors=False)
    keys = zip(*(rows[c].to_pylist() for c in ("item_id", "shard_id", "version")), strict=True)
    twice = [f"{key} is {n} times in the gallery" for key, n in Counter(keys).items() if n > 1]
    meta = rows.take(select_rows(rows, store.ledger, store.tree, store.tree.head).picked)
    served = dict(zip(meta["item_id"].to_pylist(), meta["class_name"].to_pylist(), strict=True))
    lost = [f"item {item} is lost" for item in landed.keys() - served.keys()]
    phantom = [f"item {item} never landed" for item in served.keys() - landed.keys()]
    wrong = [f"item {i} is of {served[i]}" for i in landed.keys() & served.keys() if served[i] != landed[i]]
    return twice + lost + phantom + wrong


def _stages(store: Store, learnt_shards: int | None) -> list[str]:
    tasks = [store.tree.get(v).task for v in store.tree.lineage(store.tree.head)[1:]]
    found = [f"{task} is learnt {n} times" for task, n in Counter(tasks).items() if n > 1]
    members = [s for task in tasks if task for s in store.ledger.tasks[task].shard_ids]
    found += [f"shard {s} is learnt {n} times" for s, n in Counter(members).items() if n > 1]
    if learnt_shards is not None and len(set(members)) != learnt_shards:
        found.append(f"{len(set(members))} shards are learnt, expected {learnt_shards}")
    return found


def _bank(store: Store) -> list[str]:
    head = store.tree.get(store.tree.head)
    if BANK not in head.artifacts:
        return []
    bank = ClassBank.from_bytes(store.artifact(head.version_id, BANK))
    held = {(name, birth) for name, birth in bank.keys}
    expected = {
        (name, version)
        for version in store.tree.lineage(head.version_id)[1:]
        for shard in store.ledger.tasks[store.tree.get(version).task or ""].shard_ids
        for name, count in store.ledger.shards[shard].counts["trainable"].items()
        if count
    }
    found = [f"the bank lacks {key}" for key in expected - held]
    return found + [f"the bank holds {key}, which no stage learnt" for key in held - expected]
