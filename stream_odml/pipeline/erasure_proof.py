"""Proof of an erasure: every file under a stream root is opened and searched for what was to be erased.

Read-only. It does not ask the tables what they show but their folders what lies there, older versions included.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.lift import Lift
from stream_odml.pipeline.erased_copies import is_needed, is_skipped, landed_copies, touches
from stream_odml.pipeline.erasure_request import COLUMN, find_subject, stored_name, unknown, was_there
from stream_odml.pipeline.pushed import half_written, pushed_elsewhere
from stream_odml.pipeline.stage_folders import default_cache_root, stage_folders, stage_name_of
from stream_odml.storage.atomic import ASIDE
from stream_odml.storage.reading import StorageOptions
from stream_odml.store.artifacts import BANK, HEAD, SUMS
from stream_odml.store.erased_refusals import COLUMNS as REFUSAL
from stream_odml.store.erased_refusals import erased_refusals
from stream_odml.store.errors import ArtifactCorrupt, UnknownSubject
from stream_odml.store.ledger_states import ShardState, Tombstone
from stream_odml.store.pictures import erased_pictures
from stream_odml.store.store import Store
from stream_odml.store.sums import learnt_rows, sums_now

OWN_FOLDERS = ("gallery/", "quarantine/", "artifacts/", "thumbnails/", "holdout/", "cache/")
HALF_WRITTEN = (
    "half-written, and may hold it; a running stream, or another `forget`, deletes it an hour after"
)
SEARCHES = 5
"""Times that it is looked again for what replaced a file while it was searched."""
STAYS = (
    "What stays: the name in the ledger (the request itself, and counts by class), ids in the statistics of Delta's "
    "log until it is cleaned, and what the weights and drift maps learnt from the images."
)


@dataclass
class Proof:
    """What was found of one name. Empty `findings` and `inbox`: it is gone."""

    covered: int | None = None
    """Items that the requests covered; None where a release that did not count took them."""
    asked_s_ago: float = math.inf
    """Seconds since the last request."""
    files: int = 0
    findings: list[str] = field(default_factory=list)
    """Files of ours that still hold vectors, statistics or pixels, each with what it holds."""
    inbox: list[str] = field(default_factory=list)
    """Places of shards as the producer landed them that still hold the images."""
    needed: list[str] = field(default_factory=list)
    """Those of them that a task has still to learn from."""
    skipped: list[str] = field(default_factory=list)
    """Those of tasks that are not tried any more: `relearn` would do without what is deleted."""
    elsewhere: list[str] = field(default_factory=list)
    """Other stores that items were adopted from, which are not ours to search."""
    foreign: list[str] = field(default_factory=list)
    """Those of them that are versions of a table which is not ours to change."""


def verify_forgotten(
    root: str,
    kind: str,
    name: str,
    options: StorageOptions | None = None,
    source: StorageOptions | None = None,
) -> Proof:
    """Search all files under `root` and the inbox. Raises UnknownSubject when it was never asked to be forgotten, and
    when that request covered nothing."""
    store = Store.open(root, dict(options) if options else None)
    for _ in range(SEARCHES - 1):
        # A running stream corrects sums and heads, and deletes the earlier ones at once.
        with contextlib.suppress(ArtifactCorrupt):
            return _search(store, kind, name, source)
        store.refresh()
    return _search(store, kind, name, source)


def _search(store: Store, kind: str, name: str, source: StorageOptions | None) -> Proof:
    name = stored_name(store.ledger, kind, name)
    tombstones = [s for s in store.ledger.tombstones if (s.kind, s.name) == (kind, name)]
    if not tombstones:
        subject = find_subject(store, kind, name)
        if subject.items or not store.ledger.tombstones:
            raise UnknownSubject(f"{kind} {name!r} was never forgotten here; ask without --verify first")
        # Requests for other names covered the last of it: what they had to delete is searched for under this one.
        asked_at = store.ledger.tombstones[-1].time
        tombstones = [Tombstone(subject.kind, subject.name, store.ledger.seq + 1, asked_at, 0)]
    tombstone = tombstones[-1]
    known = _known(store, tombstones)
    if known == 0 and not was_there(store, kind, name):
        raise unknown(store, kind, name)
    covered = {s.shard_id: s for s in store.ledger.shards.values() if s.landed_seq < tombstone.seq}
    if kind == "shard":
        covered = {name: covered[name]} if name in covered else {}
    since = tombstone.time.timestamp()
    proof = Proof(known, asked_s_ago=time.time() - since)
    _search_files(store, tombstone, covered, proof)
    aside = (path for place in pushed_elsewhere(store) for path in half_written(place, since))
    proof.findings += [f"{path}: {HALF_WRITTEN}" for path in aside]
    proof.findings += [*_in_statistics(store, tombstone), *_in_caches(store, tombstone, covered)]
    copies = landed_copies(store, tombstone, covered, source)
    for shard in covered.values():
        adopted = shard.counts.get("adopted")
        place = (adopted or {}).get("place", shard.uri.partition("#")[0])
        if adopted is not None and touches(shard, tombstone) and place not in proof.elsewhere:
            proof.elsewhere.append(place)
        if shard.shard_id in copies:
            proof.inbox.append(shard.uri)
            if shard.format in ("delta", "files"):
                proof.foreign.append(shard.uri)
            elif is_skipped(store, shard):
                proof.skipped.append(shard.uri)
            elif any(is_needed(store, covered[of]) for of in copies[shard.shard_id]):
                proof.needed.append(shard.uri)
    return proof


def _search_files(store: Store, tombstone: Tombstone, covered: dict[str, ShardState], proof: Proof) -> None:
    searched: set[str] = set()
    for _ in range(SEARCHES):
        vanished = False
        for info in [info for info in store.files.list("") if info.path not in searched]:
            searched.add(info.path)
            if ASIDE in info.path and info.mtime < tombstone.time.timestamp():
                proof.findings.append(f"{info.path}: {HALF_WRITTEN}")
            if info.path.startswith(OWN_FOLDERS):
                try:
                    proof.findings += _in_file(store, info.path, tombstone, covered)
                except FileNotFoundError:
                    vanished = True
        proof.files = len(searched)
        if not vanished:
            return
        # What it held may be in a file that was written since the listing.
    proof.findings.append("files that were replaced while they were searched: verify again")


def _known(store: Store, tombstones: Sequence[Tombstone]) -> int | None:
    """Return how many items requests for one name covered, where that can be known."""
    counts = [tombstone.items for tombstone in tombstones if tombstone.items is not None]
    if len(counts) == len(tombstones):
        return sum(counts)
    tombstone = tombstones[-1]
    shards = [s for s in store.ledger.shards.values() if s.landed_seq < tombstone.seq]
    if tombstone.kind == "class":
        return sum(shard.classes.get(tombstone.name, 0) for shard in shards)
    return sum(s.rows for s in shards if s.shard_id == tombstone.name) if tombstone.kind == "shard" else None


def _in_file(store: Store, path: str, tombstone: Tombstone, covered: dict[str, ShardState]) -> Iterator[str]:
    """Yield what one file holds. Raises FileNotFoundError where it was deleted since it was listed."""
    files = store.files
    if not path.endswith(".parquet"):
        return
    try:
        parquet = pq.ParquetFile(pa.BufferReader(files.read(path)))
    except pa.ArrowException:
        yield f"{path}: cannot be read"
        return
    if tombstone.kind != "shard" and set(REFUSAL) <= set(parquet.schema_arrow.names):
        asked: dict[tuple[str, str], int] = {(tombstone.kind, tombstone.name): tombstone.seq}
        if count := int(erased_refusals(parquet.read(columns=list(REFUSAL)), covered, asked).sum()):
            yield f"{path}: {count} refused rows that name it"
        return
    wanted = COLUMN[tombstone.kind]
    own = Path(path).stem if path.startswith(("thumbnails/", "holdout/")) else None
    images = parquet.metadata.num_rows
    if images and tombstone.kind == "shard" and own == tombstone.name:
        yield f"{path}: pixels of {images} items"
    used = {wanted, "shard_id"} if own is None else {wanted, "shard_id", "item_id", "class_name"}
    names = used & set(parquet.schema_arrow.names)
    if wanted not in names or (own is not None and own not in covered):
        return
    table = parquet.read(columns=sorted(names))
    mask = pc.equal(table[wanted].cast(pa.string()), tombstone.name)
    if own is None:
        known = pa.array(sorted(covered), pa.string())
        mask = pc.and_(mask, pc.is_in(table["shard_id"].cast(pa.string()), value_set=known))
    elif pc.any(mask).as_py():
        mask = pc.and_(mask, pa.array(erased_pictures(own, table, store.ledger)))
    if count := pc.sum(mask).as_py():
        yield f"{path}: {count} rows" + (" of pixels" if own is not None else "")


def _in_statistics(store: Store, tombstone: Tombstone) -> Iterator[str]:
    """Yield banks and class sums that were not corrected since the request; sums that are not those of what is stored,
    and heads that are not those of their sums."""
    for version in store.tree.versions.values():
        name, files = version.version_id, {} if version.retired else version.artifacts
        before = version.time < tombstone.time
        if BANK in files and before and version.forgotten_seq < tombstone.seq:
            yield f"{files[BANK].path}: statistics of version {name}"
        if (sums := store.sums_of(name) if SUMS in files else None) is None:
            continue
        stored = store.again(partial(_stored_sums, store, name, sums.lift))
        head = store.head_of(name)
        if version.sums_seq < tombstone.seq and before:
            yield f"{files[SUMS].path}: statistics of version {name}"
        elif not sums_now(store, name).equals(stored):
            yield f"{files[SUMS].path}: sums of version {name} that are not those of what is stored"
        elif not head.again(sums).equals(head):
            yield f"{files[HEAD].path}: a head of version {name} that is not that of its sums"


def _stored_sums(store: Store, version_id: str, lift: Lift) -> ClassSums:
    return learnt_rows(store, version_id).sums(lift)


def _in_caches(store: Store, tombstone: Tombstone, covered: dict[str, ShardState]) -> list[str]:
    """Return pixel caches made before the request, of tasks with its shards and of stages unknown to the ledger."""
    caches = default_cache_root(store.uri, store.stream_id)
    found = []
    for folder in stage_folders(caches):
        shards = _shards_of_stage(store, stage_name_of(folder.name), covered)
        mine = any(shard in covered and touches(covered[shard], tombstone) for shard in shards)
        if mine and _oldest_file(folder) < tombstone.time.timestamp():
            found.append(f"{'cache' if caches.name == 'cache' else caches}/{folder.name}: decoded pixels")
    return found


def _shards_of_stage(store: Store, name: str, unknown: Iterable[str]) -> Iterable[str]:
    """Return shards of a task, or of an attempt to improve what is learnt, by its name."""
    ledger = store.ledger
    if name in ledger.tasks:
        return ledger.tasks[name].shard_ids
    attempt = ledger.later_attempts.get(name)
    return unknown if attempt is None else attempt.shards or ledger.shards_of(attempt.tasks)


def _oldest_file(folder: Path) -> float:
    """Return when the first of its files was last written; infinity where there is none."""
    times = [math.inf]
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # its stage ended meanwhile
            times.append(file.lstat().st_mtime)
    return min(times)
