"""A task's images in the pixel cache of each node: decoded once, learnt from many times.

Protects: a cache is filled from an explicit list of shards and rows, so it is the same whoever reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.ingest.cache import CacheMember, PixelCache
from stream_odml.ingest.decode import Pixels
from stream_odml.ingest.reasons import BadShard, Reason, RowProblem, TransientReadError
from stream_odml.ingest.rows import decode_rows
from stream_odml.ingest.shard import ShardRef
from stream_odml.pipeline.hang_guard import guarded
from stream_odml.store.blocks import compact
from stream_odml.store.select import select_rows
from stream_odml.store.store import META, Store
from stream_odml.store.tables import GALLERY

Batch = dict[str, NDArray[Any]]
"""member [b], row [b], pixels [b, size, size, 3], problem [b]: "" or JSON of reason and detail."""
BLOCK_ROWS = 256
LOCAL_DECODE_S = 1.0
LOCAL_DECODE_MARK = "reading-here"
_UNREACHABLE = "unreachable"
_META = pa.schema([GALLERY.field(name) for name in META])


class Wanted(TypedDict):
    """Rows of one shard to decode: its place in the cache, how to read it (JSON), the rows."""

    member: int
    spec: str
    rows: list[int]


class Readers:
    """Decodes what the first second has no time for, or should not try: here in this process, so that what hangs it or
    ends it does so."""

    def spread(self, wanted: list[Wanted], size: int) -> Iterator[Batch]:
        """Decode all of it, whatever order is fastest; rows of a reader that ended are left out."""
        for one in wanted:
            yield from decode(one["member"], one["spec"], one["rows"], size, BLOCK_ROWS)

    def apart(self, wanted: Wanted, size: int) -> Iterator[Batch]:
        """Decode rows that ended their reader, or stood beside one that did; one that ends it again is a problem."""
        yield from decode(wanted["member"], wanted["spec"], wanted["rows"], size, 1)


def task_rows(store: Store, shards: Sequence[ShardRef], head: str) -> pa.Table:
    """Return gallery rows (without vectors) of the task's living items: one each, neither replaced nor forgotten.
    Ordered as their cache is: shards in landing order, rows ascending. Reads rows of these shards, and of later ones
    those that replace an item of these; its memory does not grow with the gallery."""
    rows: pa.Table = store.again(lambda: _task_rows(store, [shard.shard_id for shard in shards], head))
    pa.default_memory_pool().release_unused()  # sorting them took three times their size
    return rows


def rows_digest(rows: pa.Table, shards: Sequence[ShardRef]) -> str:
    """Return equal for equal rows of `task_rows`, whatever files they were read from."""
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
    """Yield rows of the same items in shards that were indexed later than the first of these."""
    known = store.ledger.shards
    since = min((known[s].indexed_seq or 0 for s in ids if s in known), default=0)
    own = frozenset(ids)
    later = [s.shard_id for s in known.values() if s.shard_id not in own and (s.indexed_seq or -1) > since]
    if later:
        for _, part in store.scan(META, pc.field("shard_id").isin(pa.array(later, pa.string()))):
            yield compact(part.filter(pc.is_in(part["item_id"], value_set=items)))


def cache_members(rows: pa.Table, shards: Sequence[ShardRef]) -> Iterator[CacheMember]:
    """Yield the plan of a cache over `rows`, which are ordered by shard as `task_rows` gives them."""
    cuts = np.searchsorted(_places(rows, shards), np.arange(len(shards) + 1))
    for shard, start, end in zip(shards, cuts, cuts[1:], strict=False):
        if end > start:
            own = rows.slice(start, end - start)
            yield CacheMember(shard.shard_id, own["row"].to_numpy(), own["class_name"].to_pylist())


def _places(rows: pa.Table, shards: Sequence[ShardRef]) -> NDArray[np.int32]:
    ids = pa.array([s.shard_id for s in shards], pa.string())
    places: NDArray[np.int32] = pc.index_in(rows["shard_id"].cast(pa.string()), value_set=ids).to_numpy()
    return places


def fill_cache(
    cache: PixelCache,
    shards: Sequence[ShardRef],
    read_options: Callable[[str], dict[str, str] | None],
    *,
    max_pixels: int,
    hang_s: float,
    readers: Readers,
) -> None:
    """Decode what the cache lacks, the first of it in this process, the rest by `readers`, and write it here.

    `read_options` gives the storage options of a shard's URI; `max_pixels` is `ingest.max_pixels`. A row that
    cannot be had (changed, gone, above a limit, or the end of several readers) is noted as lost in the cache.
    A reader that gets no block further for `hang_s` seconds is ended, and its shard read again. Raises
    TransientReadError when bytes are unreachable.
    """
    specs = {
        s.shard_id: json.dumps(
            {"shard": s.to_dict(), "options": read_options(s.uri), "hang_s": hang_s, "max_pixels": max_pixels}
        )
        for s in shards
    }

    def missing() -> list[Wanted]:
        left = ((member, rows.tolist()) for member, rows in cache.missing())
        return [Wanted(member=one, spec=specs[cache.shard_ids[one]], rows=rows) for one, rows in left]

    def keep(decoded: Iterator[Batch]) -> None:
        for batch in decoded:
            _keep_batch(cache, batch)

    keep(_decoded_here(missing(), cache.size, cache.folder / LOCAL_DECODE_MARK))
    if wanted := missing():
        keep(readers.spread(wanted, cache.size))
    # Of readers that ended; what failed in another way fails again, and says so.
    for left in missing():
        keep(readers.apart(left, cache.size))
    cache.finish()


def _keep_batch(cache: PixelCache, decoded: Batch) -> None:
    """Write what a reading process gives: pixels, problems, or that its shard is unreachable."""
    problems = decoded["problem"]
    for member in np.unique(decoded["member"]):
        own = decoded["member"] == member
        good = own & (problems == "")
        cache.write(int(member), decoded["row"][good], decoded["pixels"][good])
        bad = own & ~good
        lost = [
            (row, *json.loads(text)) for row, text in zip(decoded["row"][bad], problems[bad], strict=True)
        ]
        for _, reason, detail in lost:
            if reason == _UNREACHABLE:
                raise TransientReadError(detail)
        cache.lose(int(member), [RowProblem(int(row), Reason(why), detail) for row, why, detail in lost])


def _decoded_here(wanted: list[Wanted], size: int, mark: Path) -> Iterator[Batch]:
    """Yield what this process can decode in LOCAL_DECODE_S: all of a small task, for which no other need be found or
    started. A cluster ends idle reading processes after a second, and takes seconds to start the next.

    In a thread, which is left behind where it hangs. The file `mark` is there for as long as it reads: whoever finds
    it comes after a process that this reading ended, or hangs, and leaves it to others.
    """
    until = time.monotonic() + LOCAL_DECODE_S
    found: SimpleQueue[Batch | Exception | None] = SimpleQueue()

    def read() -> None:
        try:
            for one in wanted:
                for batch in _decoded(one["member"], json.loads(one["spec"]), one["rows"], size, BLOCK_ROWS):
                    found.put(batch)
                    if time.monotonic() > until:
                        return
        except Exception as error:
            # Raised below; one that comes too late is met again by whoever reads the rest.
            found.put(error)
        finally:
            mark.unlink(missing_ok=True)
            found.put(None)

    if LOCAL_DECODE_S <= 0 or mark.exists():
        return
    mark.touch()
    threading.Thread(target=read, name="decode", daemon=True).start()
    with contextlib.suppress(Empty):
        while (one := found.get(timeout=max(0.0, until - time.monotonic()))) is not None:
            if isinstance(one, Exception):
                raise one
            yield one


def decode(member: int, spec: str, rows: list[int], size: int, block_rows: int) -> Iterator[Batch]:
    """Yield what a reading process gives of a shard: pixels of the good rows and problems of the others."""
    plan = json.loads(spec)
    yield from guarded(_decoded(member, plan, rows, size, block_rows), plan["hang_s"])


def _decoded(
    member: int, plan: dict[str, Any], rows: list[int], size: int, block_rows: int
) -> Iterator[Batch]:
    ref = ShardRef.from_dict(plan["shard"])
    try:
        for part in decode_rows(ref, rows, size, plan["max_pixels"], block_rows, plan["options"]):
            if isinstance(part, RowProblem):
                yield lost_batch(member, part.row, part.reason, part.detail, size)
            else:
                yield _batch(member, part.rows, part.pixels)
    except BadShard as error:  # none of them can be used
        detail = f"{ref.name}: {error.detail}"[:300]
        yield from (lost_batch(member, row, error.reason, detail, size) for row in rows)
    except TransientReadError as error:
        # Yielded, not raised: Ray Data retries and logs what is raised by itself.
        yield lost_batch(member, rows[0], _UNREACHABLE, str(error), size)


def lost_batch(member: int, row: int, reason: str, detail: str, size: int) -> Batch:
    """Return what a reading process yields for a row that it cannot decode."""
    return _batch(member, [row], np.zeros((1, size, size, 3), np.uint8), json.dumps([reason, detail]))


def _batch(member: int, rows: Sequence[int] | NDArray[np.int32], pixels: Pixels, problem: str = "") -> Batch:
    return {
        "member": np.full(len(rows), member, np.int32),
        "row": np.array(rows, np.int32),
        "pixels": pixels,
        "problem": np.full(len(rows), problem, object),
    }
