"""Files of images pushed over HTTP: deleted once what they hold is learnt and nobody is likely to want
it learnt again.

Protects: a file that a task has still to learn from stays, and so do those of tasks refused or skipped.
"""

from __future__ import annotations

import time
from pathlib import PurePosixPath

from stream_odml.storage.claims import CLAIMS
from stream_odml.storage.files import Files
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer

PUSHED = "push-"
"""How names of pushed shards begin (`landing.push_name`): other files of the folder are not ours to delete."""

PRUNED = "its pushed images were deleted after they were learnt (store.keep_pushed_h); push them again to learn them"


def prune_pushed(store: Store, files: Files, keep_s: float) -> int:
    """Delete the files below `files` of pushed shards whose task the head's path learnt `keep_s` ago; how many."""
    listed = {info.path for info in files.list("")}
    there = set(filter(_is_pushed, listed))
    if not there or not store.tree.moves:
        return 0
    before = time.time() - keep_s
    lineage = (store.tree.get(version_id) for version_id in store.tree.lineage(store.tree.head))
    consumed = [v.task for v in lineage if v.task and v.time.timestamp() <= before]
    pruned = 0
    for task_id in consumed:
        for shard_id in store.ledger.tasks[task_id].shard_ids:
            name = PurePosixPath(store.ledger.shards[shard_id].uri).name
            if name in there:
                files.delete(name)
                if f"{CLAIMS}/{name}" in listed:  # after its shard: a claim without one is a producer at work
                    files.delete(f"{CLAIMS}/{name}")
                pruned += 1
    return pruned


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
    """Those of `tasks` that cannot be learnt again, because pushed images of theirs were pruned."""
    gone = []
    for task in tasks:
        shards = (store.ledger.shards[shard_id] for shard_id in store.ledger.tasks[task].shard_ids)
        names = (PurePosixPath(shard.uri).name for shard in shards)
        if any(_is_pushed(name) and not files.exists(name) for name in names):
            gone.append(task)
    return gone


def _is_pushed(path: str) -> bool:
    return path.startswith(PUSHED) and path.endswith(".parquet") and "/" not in path
