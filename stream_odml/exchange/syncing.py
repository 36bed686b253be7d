"""Keeping another store in step with the gallery: what differs is written, bucket by bucket, and a new space is filled
aside and shown in one step.

Protects: nothing depends on what an earlier run did or where it ended: each run compares digests and writes what
differs, so that the same command after any end leaves the target equal; and readers never see two spaces. Where neither
the root nor the number of rows at the target has changed since a run that ended well, digests are not compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.rows import BLOCK, Gallery
from stream_odml.exchange.target import (
    BUCKETS,
    ROWS,
    Digests,
    Mark,
    Now,
    SyncTarget,
    bucket_of,
    read_digests,
    summed,
)
from stream_odml.storage.crashpoints import crash_point

ROWS_AT_ONCE = BLOCK
"""Rows of buckets that are written together, by one commit at most targets: each takes longer than the one before."""


@dataclass(frozen=True)
class SyncReport:
    """What one run did."""

    target: str
    space: str
    version: str
    sequence: int
    items: int
    written: int
    """Rows of buckets that differed."""
    switched: bool
    """Whether readers see another space now."""
    equal: bool
    """Whether all that was compared is equal on both sides: digests of all buckets, or the number of rows alone."""
    seconds: float
    compared: bool = True
    """Whether digests were compared: where nothing changed since the last run, only `verify` does."""


@dataclass(frozen=True, eq=False)
class _Source:
    """The gallery by buckets, with the digest of each row."""

    gallery: Gallery
    buckets: NDArray[np.int64]
    digests: NDArray[np.int64]

    @staticmethod
    def of(gallery: Gallery) -> _Source:
        digests = [digest for rows in gallery.blocks() for digest in read_digests(rows)]
        buckets = [bucket_of(one) for one in gallery.ids]
        return _Source(gallery, np.array(buckets, np.int64), np.array(digests, np.int64))

    def rows(self, buckets: Sequence[int]) -> pa.Table:
        at = np.flatnonzero(np.isin(self.buckets, buckets))
        rows = self.gallery.table(at)
        rows = rows.append_column("bucket", pa.array(self.buckets[at], pa.int32()))
        rows = rows.append_column("digest", pa.array(self.digests[at], pa.int64()))
        return rows.select([*ROWS.names, "vector"])


def sync(
    root: str,
    target: SyncTarget,
    *,
    verify: bool = False,
    take_over: bool = False,
    storage_options: dict[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SyncReport:
    """Bring a target up to what the root holds now.

    `verify`: read every row back and compare digests made of what was read. `take_over`: though another stream's
    gallery is there. `progress`: buckets done and in all. Raises ExchangeError.
    """
    began = time.perf_counter()
    gallery = Gallery.load(root, storage_options)
    stream = gallery.store.stream_id
    mark = Mark(gallery.space, gallery.version, gallery.snapshot.sequence, gallery.dim, stream)
    live = target.mark()
    if live is not None and live.stream not in ("", stream) and not take_over:
        raise ExchangeError(
            f"{target.name} holds the gallery of another stream; name another place, "
            "or put this one in its place with `stream-odml sync --take-over`"
        )
    written, wrong = 0, list[int]()
    compared = verify or live != mark or target.count(mark.space) != len(gallery)
    if not compared:
        target.drop_others(mark.space)  # which a run that was killed after its switch has left
    else:
        source = _Source.of(gallery)
        mine = summed(source.buckets, source.digests)
        written = _write(source, mine, target, mark, progress)
        if verify and (wrong := _differing(mine, read_back(target, mark.space))):
            # Rows that are damaged behind the digests that were written with them.
            written += _write(source, mine, target, mark, progress, wrong)
            wrong = _differing(mine, read_back(target, mark.space))
    return SyncReport(
        target=target.name,
        space=mark.space,
        version=mark.version,
        sequence=mark.sequence,
        items=len(gallery),
        written=written,
        switched=live is None or live.space != mark.space,
        equal=not wrong,
        seconds=round(time.perf_counter() - began, 3),
        compared=compared,
    )


def _write(
    source: _Source,
    mine: Digests,
    target: SyncTarget,
    mark: Mark,
    progress: Callable[[int, int], None],
    wrong: Sequence[int] = (),
) -> int:
    """Write the buckets that differ or are known to be `wrong`, and show them to readers; how many rows these were."""
    target.prepare(mark.space, mark.dim)
    theirs = target.digests(mark.space)
    written = 0
    for buckets in _together(sorted({*_differing(mine, theirs), *wrong}), mine, progress):
        crash_point("sync.before_rows")
        rows = source.rows(buckets)
        now: Now = "nothing" if theirs.keys().isdisjoint(buckets) else "noted"
        now = now if set(wrong).isdisjoint(buckets) else "damaged"
        target.replace(mark.space, buckets, rows, now=now)
        crash_point("sync.after_rows")
        written += len(rows)
    if _differing(mine, target.digests(mark.space)):
        raise ExchangeError(
            f"{target.name} does not hold what was written; is another sync writing there? Run it again"
        )
    crash_point("sync.before_switch")
    target.switch(mark)
    crash_point("sync.after_switch")
    crash_point("sync.before_drop")
    target.drop_others(mark.space)
    return written


def read_back(target: SyncTarget, space: str) -> Digests:
    """Return the digests of buckets, made of what a reader of the target gets."""
    buckets: list[int] = []
    digests: list[int] = []
    for rows in target.read(space):
        buckets += [bucket_of(one) for one in rows["id"].to_pylist()]
        digests += read_digests(rows)
    return summed(np.array(buckets, np.int64), np.array(digests, np.int64))


def _differing(mine: Digests, theirs: Digests) -> list[int]:
    return [bucket for bucket in range(BUCKETS) if mine.get(bucket, (0, 0)) != theirs.get(bucket, (0, 0))]


def _together(
    buckets: Sequence[int], mine: Digests, progress: Callable[[int, int], None]
) -> Iterator[list[int]]:
    """Yield buckets in groups of about `ROWS_AT_ONCE` rows, and tell how many are done."""
    progress(0, len(buckets))
    group: list[int] = []
    for done, bucket in enumerate(buckets, 1):
        group.append(bucket)
        if done == len(buckets) or sum(mine.get(one, (0, 0))[0] for one in group) >= ROWS_AT_ONCE:
            yield group
            progress(done, len(buckets))
            group = []
