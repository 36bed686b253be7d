"""Files of images pushed over HTTP or copied from a topic: deleted once what they hold is learnt and nobody is likely
to want it learnt again.

Protects: a file that a task has still to learn from stays, and so do those of tasks refused or skipped.
"""

from __future__ import annotations

import re
import time
from pathlib import PurePosixPath

from stream_odml.ingest.message_range import SUFFIX
from stream_odml.storage.atomic import ASIDE, STRAY_S, drop_strays
from stream_odml.storage.files import Files, open_files
from stream_odml.storage.publish import CLAIMS
from stream_odml.storage.reading import is_remote, local_path
from stream_odml.store.layout import PUSH, SPOOL
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer

PUSHED = "push-"
"""How names of pushed shards begin (`landing.push_name`): other files of the folder are not ours to delete."""

_PUSHED_NAME = re.compile(r"push-[0-9a-f]{8,}\.parquet")

PRUNED = "its images were deleted after they were learnt (store.keep_pushed_h); push or send them again to learn them"


def prune_pushed(store: Store, files: Files, keep_s: float) -> int:
    """Delete the files below `files` of pushed shards whose task the head's path learnt `keep_s` ago, and what killed
    processes left half-written. Return how many."""
    listed = {info.path for info in files.list("")}
    pruned = drop_half_written(files.uri)
    for name in _consumed(store, set(filter(_is_pushed, listed)), keep_s):
        files.delete(name)
        if f"{CLAIMS}/{name}" in listed:  # after its shard: a claim without one is a producer at work
            files.delete(f"{CLAIMS}/{name}")
        pruned += 1
    return pruned


def prune_copied(store: Store, keep_s: float) -> int:
    """Delete copies of messages that are learnt, as `prune_pushed`, and strays: copies that no shard is made of, as a
    driver that died had begun them, and shards without a row. Return how many."""
    copies = {PurePosixPath(info.path).name: info for info in store.files.list(SPOOL)}
    ages = {name: info.mtime for name, info in copies.items() if _is_copied(name)}
    known = store.ledger.shards.values() if ages else ()
    shards = {PurePosixPath(shard.uri).name: shard for shard in known if _is_copied(shard.uri)}
    before = time.time() - STRAY_S
    strays = [name for name, age in ages.items() if age < before and _is_stray(shards.get(name))]
    names = {*_consumed(store, set(ages), keep_s), *strays}
    for name in names:
        store.files.delete(f"{SPOOL}/{name}")
    return len(names) + drop_half_written(f"{store.files.uri.rstrip('/')}/{SPOOL}")


def pushed_elsewhere(store: Store) -> list[str]:
    """Return folders outside the root, and still there, that pushed shards of this stream landed in
    (`service.push_dir`). They are what the ledger says: whoever deletes in one must have been told its name."""
    uris = (shard.uri.rpartition("/") for shard in store.ledger.shards.values())
    folders = dict.fromkeys(folder for folder, _, name in uris if _PUSHED_NAME.fullmatch(name))
    own = _real(f"{store.uri.rstrip('/')}/{PUSH}")
    there = (folder for folder in folders if is_remote(folder) or local_path(folder).is_dir())
    return [folder for folder in there if _real(folder) != own]


def _real(place: str) -> str:
    return place if is_remote(place) else str(local_path(place).resolve())


def half_written(place: str, before: float) -> list[str]:
    """Return what was left half-written in a folder of this machine before then (seconds since the epoch)."""
    if is_remote(place):
        return []
    return sorted(str(path) for path in local_path(place).glob(f"{ASIDE}*") if path.lstat().st_mtime < before)


def drop_half_written(place: str) -> int:
    """Delete what killed processes left half-written in a folder; an object store shows nothing before it is whole."""
    return 0 if is_remote(place) else drop_strays(local_path(place))


def _consumed(store: Store, there: set[str], keep_s: float) -> list[str]:
    """Return those of the files `there` whose task the head's path learnt `keep_s` ago."""
    if not there or not store.tree.moves:
        return []
    before = time.time() - keep_s
    lineage = (store.tree.get(version_id) for version_id in store.tree.lineage(store.tree.head))
    consumed = [v.task for v in lineage if v.task and v.time.timestamp() <= before]
    ids = store.ledger.shards_of(consumed)
    names = (PurePosixPath(store.ledger.shards[shard_id].uri).name for shard_id in ids)
    return [name for name in dict.fromkeys(names) if name in there]


def _is_stray(shard: ShardState | None) -> bool:
    return shard is None or (shard.indexed_seq is not None and not shard.rows and not shard.quarantined)


def move_back(writer: Writer, files: Files, version_id: str, relearn: bool) -> list[str]:
    """Move the head and return the tasks that are to be learnt again; those whose images are pruned are skipped."""
    left = writer.tree.learnt()
    writer.move_head(version_id, "rollback", skip_abandoned=not relearn)
    lost = sorted(left - writer.tree.learnt()) if relearn else []
    pruned = without_images(writer.store, files, lost)
    for task in pruned:
        writer.skip_task(task, PRUNED)
    return [task for task in lost if task not in pruned]


def without_images(store: Store, files: Files, tasks: list[str]) -> list[str]:
    """Return those of `tasks` that cannot be learnt again, because pushed images of theirs were pruned."""
    gone = []
    for task in tasks:
        shards = (store.ledger.shards[shard_id] for shard_id in store.ledger.tasks[task].shard_ids)
        # A range without a good row (where a partition begins, say) holds no image that could be missed.
        if any(_is_gone(store, files, shard.uri) for shard in shards if shard.rows):
            gone.append(task)
    return gone


def _is_gone(store: Store, pushed: Files, uri: str) -> bool:
    folder, _, name = uri.rpartition("/")
    if _is_copied(name):
        return not store.files.exists(f"{SPOOL}/{name}")
    if not _is_pushed(name) or pushed.exists(name):
        return False
    # Whoever asks may not know of a `service.push_dir`: the ledger has the place where it landed.
    return not open_files(folder, store.storage_options).exists(name)


def _is_pushed(path: str) -> bool:
    return path.startswith(PUSHED) and path.endswith(".parquet") and "/" not in path


def _is_copied(path: str) -> bool:
    return path.endswith(SUFFIX)
