"""Readers of a task's images on the whole cluster: Ray Data for most, single tasks for rows that end their readers.

The Dataset is finite and made from an explicit list of shards and rows, so it is the same whenever it is built;
a read task that is run again after a kill yields the same blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray.data

from stream_odml.cluster.ray_compat import task_attempt
from stream_odml.cluster.runtime import LEARNING_NICENESS, lower_priority
from stream_odml.ingest.reasons import Reason
from stream_odml.ingest.tables import start_decoder
from stream_odml.pipeline.task_cache import BLOCK_ROWS, Batch, Readers, Wanted, decode, lost_batch

READER_ENDS = 3
"""Processes that a row may end, alone with them from the second on, until the task is learnt without it."""
READ_RETRIES = 1
"""Times that a shard whose reader ended is read again as a whole. Ray Data runs such a task again for ever."""


class ReaderEnded(RuntimeError):
    """The shard ends who reads it: its rows are to be read apart from each other."""


@dataclass(frozen=True)
class RayReaders(Readers):
    """Reads in processes of their own, each with `cpus` logical CPUs."""

    cpus: float

    def warm_up(self) -> None:
        """Run an empty Dataset: the first task then finds Ray Data loaded, a reading process and a decoder started."""
        start_decoder()
        list(self.spread([Wanted(member=0, spec="", rows=[])], 1))

    def spread(self, wanted: list[Wanted], size: int) -> Iterator[Batch]:
        """Decode all of it as one Dataset; rows of a shard whose readers end are left out."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.use_datasource_v2 = False  # it starts actors for each execution: seconds a task
        # A shard whose readers end is left out, and its rows are then read apart from each other.
        context.max_errored_blocks = -1
        # More reads than cores decode no faster. They start more processes, each of which takes seconds of a core
        # from those that answer people, just when a task begins.
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        dataset = ray.data.from_items(wanted, override_num_blocks=len(wanted)).map_batches(
            _decode_shard,
            batch_size=1,
            batch_format="numpy",
            fn_kwargs={"size": size},
            compute=ray.data.TaskPoolStrategy(size=cores),
            num_cpus=self.cpus,
        )
        yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)

    def apart(self, wanted: Wanted, size: int) -> Iterator[Batch]:
        """Decode rows one by one, each told as soon as it is decoded, so that the first that is missing when a reader
        ends is read alone."""
        read = ray.remote(num_cpus=self.cpus, max_retries=0)(_decode)
        member, spec, rows = wanted["member"], wanted["spec"], wanted["rows"]
        ends: Counter[int] = Counter()
        while rows:
            chosen, left = rows[:1] if ends[rows[0]] else rows, len(rows)
            why = "it gave nothing"
            try:
                for ref in read.options(num_returns="streaming").remote(member, spec, chosen, size, 1):
                    batch = ray.get(ref)
                    yield batch
                    done = set(batch["row"].tolist())
                    rows = [row for row in rows if row not in done]
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                why = type(error).__name__
            else:
                if len(rows) < left:
                    continue
            if not rows:
                return
            ends[rows[0]] += 1
            if ends[rows[0]] == READER_ENDS:
                detail = f"reading it for training ended its process {READER_ENDS} times: {why}"
                yield lost_batch(member, rows[0], Reason.KILLED_READER, detail, size)
                rows = rows[1:]


def _decode_shard(wanted: dict[str, Any], size: int) -> Iterator[Batch]:
    if task_attempt() > READ_RETRIES:
        raise ReaderEnded(f"reading a shard ended its process {READ_RETRIES + 1} times")
    rows = [int(row) for row in wanted["rows"][0]]
    if rows:
        yield from _decode(int(wanted["member"][0]), wanted["spec"][0], rows, size, BLOCK_ROWS)


def _decode(member: int, spec: str, rows: list[int], size: int, block_rows: int) -> Iterator[Batch]:
    lower_priority(LEARNING_NICENESS)
    yield from decode(member, spec, rows, size, block_rows)
