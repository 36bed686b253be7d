"""A task's images, streamed by Ray Data into the pixel cache of each node: decoded once, learnt from many times.

The Dataset is finite and made from an explicit list of shards and rows, so it is the same whenever it is built;
a read task that is run again after a kill yields the same blocks.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray

from stream_odml.cluster.hang_guard import guarded
from stream_odml.cluster.runtime import LEARNING_NICENESS, step_back
from stream_odml.gallery.select import select_rows
from stream_odml.gallery.store import META, Store, compact
from stream_odml.gallery.tables import GALLERY
from stream_odml.stream.cache import CacheMember, PixelCache
from stream_odml.stream.rows import Block, decode_rows
from stream_odml.stream.shard import ShardRef

BLOCK_ROWS = 256
HERE_S = 1.0
_META = pa.schema([GALLERY.field(name) for name in META])


def task_rows(store: Store, shards: Sequence[ShardRef], head: str) -> pa.Table:
    """Gallery rows (without vectors) of the task's living items: one each, neither replaced nor forgotten.

    Ordered as their cache is: shards in landing order, rows ascending. Reads rows of these shards, and of later
    ones those that replace an item of these; its memory does not grow with the gallery.
    """
    rows: pa.Table = store.again(lambda: _task_rows(store, [shard.shard_id for shard in shards], head))
    pa.default_memory_pool().release_unused()  # sorting them took three times their size
    return rows


def rows_digest(rows: pa.Table, shards: Sequence[ShardRef]) -> str:
    """Equal for equal rows of `task_rows`, whatever files they were read from."""
    digest = hashlib.sha256(_places(rows, shards).tobytes())
    digest.update(rows["row"].to_numpy().tobytes())
    return digest.hexdigest()


def _task_rows(store: Store, ids: Sequence[str], head: str) -> pa.Table:
    shards = pa.array(ids, pa.string())
    own = [compact(part) for _, part in store.scan(META, pc.field("shard_id").isin(shards))]
    if not own:
        return compact(_META.empty_table())
    parts = [*own, *_replacing(store, ids, pa.concat_tables(own)["item_id"].unique())]
    rows = pa.concat_tables(parts).unify_dictionaries()
    rows = rows.take(select_rows(rows, store.ledger, store.tree, head).picked)
    place = pc.index_in(rows["shard_id"].cast(pa.string()), value_set=shards)
    rows = rows.append_column("place", place).filter(pc.is_valid(place))
    return rows.sort_by([("place", "ascending"), ("row", "ascending")]).drop_columns(["place"])


def _replacing(store: Store, ids: Sequence[str], items: pa.Array) -> Iterator[pa.Table]:
    """Rows of the same items in shards that were indexed later than the first of these."""
    known = store.ledger.shards
    since = min((known[s].indexed_seq or 0 for s in ids if s in known), default=0)
    own = frozenset(ids)
    later = [s.shard_id for s in known.values() if s.shard_id not in own and (s.indexed_seq or -1) > since]
    if later:
        for _, part in store.scan(META, pc.field("shard_id").isin(pa.array(later, pa.string()))):
            yield compact(part.filter(pc.is_in(part["item_id"], value_set=items)))


def cache_members(rows: pa.Table, shards: Sequence[ShardRef]) -> Iterator[CacheMember]:
    """The plan of a cache over ``rows``, which are ordered by shard as `task_rows` gives them."""
    cuts = np.searchsorted(_places(rows, shards), np.arange(len(shards) + 1))
    for shard, start, end in zip(shards, cuts, cuts[1:], strict=False):
        if end > start:
            own = rows.slice(start, end - start)
            yield CacheMember(shard.shard_id, own["row"].to_numpy(), own["class_name"].to_pylist())


def _places(rows: pa.Table, shards: Sequence[ShardRef]) -> NDArray[np.int32]:
    ids = pa.array([s.shard_id for s in shards], pa.string())
    places: NDArray[np.int32] = pc.index_in(rows["shard_id"].cast(pa.string()), value_set=ids).to_numpy()
    return places


def open_cache(folder: Path, rows: pa.Table, shards: Sequence[ShardRef], size: int) -> PixelCache:
    """The cache of these rows in ``folder``; complete, or as far as an earlier process came."""
    return PixelCache(folder, cache_members(rows, shards), size)


def fill_cache(
    cache: PixelCache,
    shards: Sequence[ShardRef],
    read_options: Callable[[str], dict[str, str] | None],
    cpus_per_read: float,
    hang_s: float,
) -> None:
    """Decode what the cache lacks, the first of it in this process, the rest on the whole cluster, and write it here.

    ``read_options`` gives the storage options of a shard's URI. A reader that gets no block further for
    ``hang_s`` seconds is ended, and its shard read again. Raises what reading raises (BadShard if a shard changed
    since it was indexed).
    """
    specs = {
        s.shard_id: {"shard": s.to_dict(), "options": read_options(s.uri), "hang_s": hang_s} for s in shards
    }
    for member, block in _decoded_here(cache, specs, time.monotonic() + HERE_S):
        cache.write(member, block.rows, block.pixels)
    wanted = [
        {"member": member, "spec": json.dumps(specs[cache.shard_ids[member]]), "rows": rows}
        for member, rows in cache.missing()
    ]
    for decoded in _decoded(wanted, cache.size, cpus_per_read):
        for member in np.unique(decoded["member"]):
            own = decoded["member"] == member
            cache.write(int(member), decoded["row"][own], decoded["pixels"][own])
    cache.finish()


def _decoded_here(
    cache: PixelCache, specs: dict[str, dict[str, Any]], until: float
) -> Iterator[tuple[int, Block]]:
    """What this process can decode by then: all of a small task, for which no other need be found or started. A
    cluster ends idle reading processes after a second, and takes seconds to start the next.

    In a thread, which is left behind where it hangs.
    """
    found: SimpleQueue[tuple[int, Block] | BaseException | None] = SimpleQueue()
    missing = cache.missing()

    def read() -> None:
        try:
            for member, rows in missing:
                for block in _decode(specs[cache.shard_ids[member]], rows.tolist(), cache.size):
                    found.put((member, block))
                    if time.monotonic() > until:
                        return
        except Exception as error:
            found.put(error)
        finally:
            found.put(None)

    if time.monotonic() < until:
        threading.Thread(target=read, name="decode", daemon=True).start()
    while (left := until - time.monotonic()) > 0:
        try:
            one = found.get(timeout=left)
        except Empty:
            return
        if isinstance(one, BaseException):
            raise one
        if one is None:
            return
        yield one


def warm_up(cpus_per_read: float) -> None:
    """Run an empty Dataset, so that the first task finds Ray Data loaded and a reading process started."""
    list(_decoded([{"member": 0, "spec": "", "rows": []}], 1, cpus_per_read))


def _decoded(
    wanted: list[dict[str, Any]], size: int, cpus: float
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    if not wanted:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # it starts actors for each execution: seconds a task
    # More reads than cores decode no faster. They start more processes, each of which takes seconds of a core from
    # those that answer people, just when a task begins.
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    dataset = ray.data.from_items(wanted, override_num_blocks=len(wanted)).map_batches(
        _decode_shard,
        batch_size=1,
        batch_format="numpy",
        fn_kwargs={"size": size},
        compute=ray.data.TaskPoolStrategy(size=cores),
        num_cpus=cpus,
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)


def _decode_shard(wanted: dict[str, Any], size: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    step_back(LEARNING_NICENESS)
    rows = [int(row) for row in wanted["rows"][0]]
    if not rows:
        return
    spec = json.loads(wanted["spec"][0])
    for block in guarded(_decode(spec, rows, size), spec["hang_s"]):
        member = np.full(len(block.rows), wanted["member"][0], np.int32)
        yield {"member": member, "row": block.rows, "pixels": block.pixels}


def _decode(spec: dict[str, Any], rows: list[int], size: int) -> Iterator[Block]:
    return decode_rows(ShardRef.from_dict(spec["shard"]), rows, size, BLOCK_ROWS, spec["options"])
