"""The pixels of one task, decoded once: a memory-mapped file that may be larger than memory.

Invariant: the order of rows is that of (member, row) whatever order they arrive in, and `complete.json`
is there only when every row is, durable, for exactly these members at this size, or is known to be lost. An
incomplete cache of the same plan is taken up where it stopped; one of another plan is thrown away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.ingest.decode import Pixels
from stream_odml.ingest.reasons import Reason, RowProblem
from stream_odml.storage.atomic import write_whole

PLAN = "plan.json"
_COMPLETE, _PIXELS, _DONE = "complete.json", "pixels.u8", "done.u1"
_LOST = "lost.jsonl"
_IS_WRITTEN, _IS_LOST = 1, 2


@dataclass(frozen=True)
class CacheMember:
    """A shard's part in a task: its rows ascending [n] and the class name of each."""

    shard_id: str
    rows: Sequence[int] | NDArray[np.int32]
    class_names: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.class_names):
            raise ValueError(
                f"{self.shard_id}: {len(self.rows)} rows but {len(self.class_names)} class names"
            )
        if (np.diff(np.asarray(self.rows, np.int64)) <= 0).any():
            raise ValueError(f"{self.shard_id}: rows must ascend without repeats")


class PixelCache:
    """Open or create the cache of a plan in `folder`.

    Attributes: `pixels` [N, size, size, 3] uint8 memory map (complete only), `labels` [N] int64 into the sorted
    `class_names`, `member_index` [N] int32 into `shard_ids` and `row` [N] int32. ValueError for a plan without rows.

    `members` are taken one at a time and not kept: a plan of millions of rows costs its arrays, some 16 bytes a row.
    """

    def __init__(self, folder: str | os.PathLike[str], members: Iterable[CacheMember], size: int) -> None:
        self.folder, self.size = Path(folder), size
        plan = _Plan.of(members, size)
        if not len(plan.row):
            raise ValueError(
                f"{self.folder}: the plan has no rows; a task needs at least one trainable image"
            )
        self.shard_ids, self.class_names = plan.shard_ids, plan.class_names
        self.fingerprint, self.labels, self.row = plan.fingerprint, plan.labels, plan.row
        self.member_index = np.repeat(np.arange(len(plan.counts), dtype=np.int32), plan.counts)
        self._starts = np.concatenate(([0], np.cumsum(plan.counts)))
        self._row_bytes = size * size * 3
        self._pixels: Pixels | None = None
        self._prepare()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_complete(self) -> bool:
        """Whether every pixel is there."""
        return (self.folder / _COMPLETE).exists()

    @property
    def pixels(self) -> Pixels:
        """All pixels as a read-only memory map. Raises ValueError before the cache is complete."""
        if self._pixels is None:
            if not self.is_complete:
                raise ValueError(
                    f"{self.folder} is incomplete: write the rows that missing() names, then finish()"
                )
            shape = (len(self), self.size, self.size, 3)
            self._pixels = np.memmap(self.folder / _PIXELS, np.uint8, "r", shape=shape)
        return self._pixels

    def missing(self) -> list[tuple[int, NDArray[np.int32]]]:
        """Return what is still to be written: (member index, rows)."""
        if self.is_complete:
            return []
        absent = np.flatnonzero(np.fromfile(self.folder / _DONE, np.uint8) == 0)
        members, firsts = np.unique(self.member_index[absent], return_index=True)
        parts = np.split(self.row[absent], firsts[1:])
        return [(int(member), rows) for member, rows in zip(members, parts, strict=False)]

    def write(self, member: int, rows: NDArray[np.integer], pixels: Pixels) -> None:
        """Put rows of a member in their places, in any order, again if need be. Raises ValueError for a foreign row."""
        if not len(rows):
            return
        places = self._places(member, rows)
        if pixels.dtype != np.uint8 or pixels.shape != (len(rows), self.size, self.size, 3):
            expected = [len(rows), self.size, self.size, 3]
            raise ValueError(f"expected uint8 {expected}, got {pixels.dtype} {list(pixels.shape)}")
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(places) != 1) + 1)
        with open(self.folder / _PIXELS, "r+b", buffering=0) as data:
            for run in runs:
                _write_all(data.fileno(), pixels[run], int(places[run[0]]) * self._row_bytes)
        # Marked only after the pixels: a process killed in between writes them again.
        with open(self.folder / _DONE, "r+b", buffering=0) as done:
            for run in runs:
                _write_all(done.fileno(), np.full(len(run), _IS_WRITTEN, np.uint8), int(places[run[0]]))

    def lose(self, member: int, problems: Sequence[RowProblem]) -> None:
        """Note rows of a member that cannot be had, whatever was written of them: the task is learnt without them."""
        if not problems:
            return
        with open(self.folder / _LOST, "a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps([member, p.row, p.reason, p.detail])}\n" for p in problems)
        places = self._places(member, np.array([problem.row for problem in problems], np.int64))
        with open(self.folder / _DONE, "r+b", buffering=0) as done:
            for place in places:
                _write_all(done.fileno(), np.array([_IS_LOST], np.uint8), int(place))

    def lost(self) -> NDArray[np.bool_]:
        """Return [N] whether each row is known to be lost; its pixels mean nothing then."""
        return np.equal(np.fromfile(self.folder / _DONE, np.uint8), _IS_LOST)

    def lost_rows(self) -> list[tuple[str, RowProblem]]:
        """Return the rows that are lost: (shard id, problem), each once."""
        try:
            lines = (self.folder / _LOST).read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        # A killed process may leave half a line.
        noted = [json.loads(line) for line in lines if line.endswith("\n")]
        found = {(m, row): RowProblem(row, Reason(reason), detail) for m, row, reason, detail in noted}
        return [(self.shard_ids[member], problem) for (member, _), problem in sorted(found.items())]

    def finish(self) -> None:
        """Make it durable and complete. Raises ValueError while rows are missing."""
        absent = sum(len(rows) for _, rows in self.missing())
        if absent:
            raise ValueError(f"{self.folder}: {absent} of {len(self)} rows are missing; write them first")
        if not self.is_complete:
            for name in (_PIXELS, _DONE):
                with open(self.folder / name, "rb") as data:
                    os.fsync(data.fileno())
            _write_json(self.folder / _COMPLETE, {"fingerprint": self.fingerprint})

    def batch(self, indices: NDArray[np.integer]) -> Pixels:
        """Return pixels [b, size, size, 3] at `indices`, contiguous and writable."""
        source = self.pixels
        out = np.empty((len(indices), *source.shape[1:]), np.uint8)
        for place in np.argsort(indices, kind="stable"):  # ascending: the disk reads forward
            out[place] = source[indices[place]]
        return out

    def _places(self, member: int, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return places of a member's rows in the cache. Raises ValueError for a foreign row."""
        start, end = self._starts[member], self._starts[member + 1]
        own = self.row[start:end]
        at = np.searchsorted(own, rows)
        if (at >= len(own)).any() or (own[np.minimum(at, len(own) - 1)] != rows).any():
            raise ValueError(f"{self.shard_ids[member]}: rows outside the plan among {np.asarray(rows)[:8]}…")
        return np.asarray(at + start, np.int64)

    def _prepare(self) -> None:
        plan = self.folder / PLAN
        if plan.exists() and json.loads(plan.read_text())["fingerprint"] == self.fingerprint:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name, length in ((_PIXELS, len(self) * self._row_bytes), (_DONE, len(self))):
            with open(self.folder / name, "wb") as file:
                file.truncate(length)
        _write_json(
            self.folder / PLAN, {"fingerprint": self.fingerprint, "size": self.size, "rows": len(self)}
        )


@dataclass(frozen=True)
class _Plan:
    """The members as arrays."""

    shard_ids: tuple[str, ...]
    counts: NDArray[np.int64]
    row: NDArray[np.int32]
    labels: NDArray[np.int64]
    class_names: list[str]
    fingerprint: str

    @staticmethod
    def of(members: Iterable[CacheMember], size: int) -> _Plan:
        digest = hashlib.sha256(f"2|{size}".encode())
        number: dict[str, int] = {}
        ids: list[str] = []
        rows, codes = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for member in members:
            ids.append(member.shard_id)
            rows.append(np.asarray(member.rows, np.int32))
            named = [number.setdefault(name, len(number)) for name in member.class_names]
            codes.append(np.array(named, np.int32))
            digest.update(f"|{member.shard_id}|".encode() + rows[-1].tobytes())
            digest.update(json.dumps(list(member.class_names)).encode())
        counts = np.array([len(part) for part in rows[1:]], np.int64)
        names = sorted(number)
        place = np.empty(len(names), np.int64)
        place[[number[name] for name in names]] = np.arange(len(names))
        labels = place[np.concatenate(codes)]
        return _Plan(tuple(ids), counts, np.concatenate(rows), labels, names, digest.hexdigest())


def _write_all(handle: int, array: NDArray[np.uint8], offset: int) -> None:
    data = memoryview(array.tobytes())
    while len(data):
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def _write_json(path: Path, body: dict[str, Any]) -> None:
    write_whole(path, lambda file: file.write(json.dumps(body).encode()))
