"""The process that decodes tables, `python -m stream_odml.ingest.table_reader`: bytes come in, rows go out.

Protects: whoever reads shards, from what a table may do to its decoder. This process has a limit on its memory and
its time, opens no file (it asks its parent for bytes) but one of Lance, and may end at any moment: that is the end of
one file only.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from stream_odml.ingest.arrow_rows import METADATA, blame, metadata_rows, rows_of
from stream_odml.ingest.child import END, ROW, AskedFile, Pipe, take_pipe
from stream_odml.ingest.lance_file import LANCE, LanceFile
from stream_odml.ingest.npz_rows import npz_rows
from stream_odml.ingest.rawrow import RawRow
from stream_odml.ingest.reasons import BadShard, Reason

CPU_S = 600
_BYTES_PER_CPU_S = 1 << 20
_READERS: Mapping[str, Callable[..., Iterator[RawRow]]] = {"npz": npz_rows, METADATA: metadata_rows}


def main() -> None:
    """Serve jobs until the parent is gone."""
    pipe = take_pipe()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    pa.set_cpu_count(1)
    while (job := pipe.receive_json()) is not None:
        pipe.send(END, _serve(pipe, job))
        pa.default_memory_pool().release_unused()


def _serve(pipe: Pipe, job: Mapping[str, Any]) -> dict[str, Any]:
    """Read one file; how it ended."""
    format, size = job["format"], int(job["size"])
    try:
        file = LanceFile(job["uri"], job["options"], size) if format == LANCE else AskedFile(pipe, size)
    except ImportError as error:
        return {"missing": str(error)[:300]}
    before = _limit_this_process(int(job["memory"]), size)
    try:
        reader = _READERS.get(format, rows_of)
        for row in reader(file, format, job["constants"], job["contents"]):
            _send_row(pipe, row)
    except BadShard as error:
        return {"reason": str(error.reason), "detail": error.detail}
    except MemoryError:  # Arrow's own is one of these
        detail = f"reading it takes more than {job['memory']} bytes of memory for {size} bytes of file"
        return {"reason": str(Reason.OVERSIZED), "detail": detail}
    except Exception as error:
        # Of Arrow or Lance, for a file that may hold anything; the parent refuses it with this.
        detail = f"{type(error).__name__}: {str(error)[:300]}"
        if file.is_unreachable:
            return {"unreachable": detail}
        reason = blame(file, format) if isinstance(file, AskedFile) else Reason.CORRUPT_FILE
        return {"reason": str(reason), "detail": detail}
    finally:
        for kind, limits in before.items():
            resource.setrlimit(kind, limits)
    return {}


def _send_row(pipe: Pipe, row: RawRow) -> None:
    parts = ("row", "label", "item_id", "attributes", "time", "names", "problem", "is_label")
    fields = {part: getattr(row, part) for part in parts}
    is_vector = row.vector is not None
    pipe.send(ROW, {**fields, "is_vector": is_vector}, row.vector if is_vector else row.image)


def _limit_this_process(memory: int, size: int) -> dict[int, tuple[int, int]]:
    """Hold this process to so much more memory than it has now, and to time in proportion; what was before. RLIMIT_DATA
    counts private memory only, so that neither libraries nor reserved addresses weigh."""
    seconds = int(time.process_time()) + CPU_S + size // _BYTES_PER_CPU_S
    wanted = {resource.RLIMIT_DATA: _data_bytes() + memory, resource.RLIMIT_CPU: seconds}
    before = {kind: resource.getrlimit(kind) for kind in wanted}
    for kind, soft in wanted.items():
        hard = before[kind][1]
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    return before


def _data_bytes() -> int:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
