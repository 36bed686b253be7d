"""Erasure in the class banks: each erased image's original vector is taken out of the means it went into.

Protects: a bank is changed together with the note of how far it is changed, in one commit, and before the vectors
that this needs are deleted; so a crash at any moment neither leaves an image in nor takes one out twice.

An entry (class, origin version) is corrected in the oldest version that still has it; the banks of later versions
hold the same original mean moved on, and follow from it. An image that an upsert replaced stays in its entry until
it is forgotten by name, and then only if its rows are not yet purged; the means are of what was learnt, not of what
is current.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_odml.learn.bank import ClassBank
from stream_odml.store.artifacts import BANK, ArtifactRef, read_artifact
from stream_odml.store.ledger import LedgerState
from stream_odml.store.select import forgotten_rows
from stream_odml.store.store import Store
from stream_odml.store.tables import decoded, values
from stream_odml.store.writer import Writer

Key = tuple[str, str]
Floats = NDArray[np.float32]


def forget_in_banks(writer: Writer) -> int:
    """Bring the banks of all kept versions up to the tombstones; how many versions were noted. Call it before the rows
    are purged, with nothing committed in between."""
    store = writer.store
    store.refresh()
    newest = store.ledger.newest_tombstone
    kept = {version.version_id: version for version in store.tree.kept_with(BANK)}
    if all(version.forgotten_seq >= newest for version in kept.values()):
        return 0
    gone = _original_vectors(store)
    banks: dict[str, ClassBank] = {}
    masters: dict[Key, ClassBank] = {}
    seen: set[Key] = set()
    for version_id, version in kept.items():
        bank = ClassBank.from_bytes(store.artifact(version_id, BANK))
        bank = followed(bank, {key: masters.get(key) for key in bank.keys if key in seen})
        for key in [key for key in bank.keys if key not in seen]:
            seen.add(key)
            for vector, covered_at in gone.get(key, []):
                if covered_at > version.forgotten_seq:
                    bank = bank.forget_item(*key, vector)
            if key in bank.keys:
                masters[key] = bank
        banks[version_id] = bank
    writer.replace_forgotten({name: {BANK: bank.to_bytes()} for name, bank in banks.items()}, newest)
    return len(banks)


def without_forgotten(
    writer: Writer,
    version_id: str,
    parent: str,
    artifacts: Mapping[str, ArtifactRef],
    rows: Iterable[pa.Table],
) -> Mapping[str, ArtifactRef]:
    """Return artifacts of a stage about to be committed, its bank without what was forgotten while it was learnt.
    `rows`: the stage's own rows in parts; those under a tombstone are in the new entries but will not be stored."""
    store = writer.store
    if not store.ledger.tombstones or BANK not in artifacts:
        return artifacts
    bank = before = ClassBank.from_bytes(read_artifact(store.files, artifacts[BANK]))
    if BANK in store.tree.get(parent).artifacts:
        known = ClassBank.from_bytes(store.artifact(parent, BANK))
        masters = {key: known if key in known.keys else None for key in bank.keys if key[1] != version_id}
        bank = followed(bank, masters)
    for part in rows:
        for key, vectors in _lost(part, store.ledger, version_id, store.dim).items():
            for vector in vectors:
                bank = bank.forget_item(*key, vector)
    if bank is before:
        return artifacts
    return {**artifacts, BANK: writer.put_artifact(version_id, BANK, bank.to_bytes())}


def followed(bank: ClassBank, masters: Mapping[Key, ClassBank | None]) -> ClassBank:
    """Return `bank` with entries corrected as they are in `masters`, and without those that have none any more."""
    gone = [key for key, master in masters.items() if master is None]
    if gone:
        bank = bank.selected(np.array([i for i, key in enumerate(bank.keys) if key not in gone], np.int64))
    rows, counts, means = [], [], []
    for i, key in enumerate(bank.keys):
        master = masters.get(key)
        if master is None:
            continue
        at = master.keys.index(key)
        if bank.counts[i] != master.counts[at]:
            rows.append(i)
            counts.append(master.counts[at])
            means.append(master.origin_means[at])
    if not rows:
        return bank
    return bank.corrected(np.array(rows), np.array(counts), np.array(means))


def _original_vectors(store: Store) -> dict[Key, list[tuple[Floats, int]]]:
    """Return (class, origin version) -> (raw vector under that model, `seq` of the first tombstone that covers it) of
    each forgotten training image."""
    origins = {v.txn: v.version_id for v in store.tree.versions.values() if v.parent is not None}
    found: dict[Key, list[tuple[Floats, int]]] = {}
    for path, block, mask in store.rows_of(frozenset(origins)):
        dead = np.intersect1d(
            forgotten_rows(block, store.ledger), np.flatnonzero(mask.to_numpy(zero_copy_only=False))
        )
        if not len(dead):
            continue
        vectors = store.vectors(path)
        rows = block.take(pa.array(dead)).to_pylist()
        for at, row in zip(dead, rows, strict=True):
            if not row["held_out"]:
                covered = _first_cover(store.ledger, row["shard_id"], row["class_name"], row["item_id"])
                found.setdefault((row["class_name"], origins[row["txn"]]), []).append((vectors[at], covered))
    return found


def _first_cover(ledger: LedgerState, shard_id: str, class_name: str, item_id: str) -> int:
    names = {("class", class_name), ("item", item_id), ("shard", shard_id)}
    landed = ledger.shards[shard_id].landed_seq
    return min(s.seq for s in ledger.tombstones if s.seq > landed and (s.kind, s.name) in names)


def _lost(rows: pa.Table, ledger: LedgerState, version_id: str, dim: int) -> dict[Key, list[Floats]]:
    lost = rows.take(pa.array(forgotten_rows(rows, ledger)))
    found: dict[Key, list[Floats]] = {}
    for (name, held_out), vector in zip(
        values(lost, "class_name", "held_out"), decoded(lost, dim), strict=True
    ):
        if not held_out:
            found.setdefault((name, version_id), []).append(vector)
    return found
