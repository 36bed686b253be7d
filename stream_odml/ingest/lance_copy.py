"""The process that reads one data file of a Lance dataset, `python -m stream_odml.ingest.lance_copy`.

Takes a job as JSON, writes an Arrow file to its standard output, and at last one line of JSON to its standard error.
Protects: whoever reads shards. This process has a limit on its memory and its time, and may end at any moment.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

import pyarrow as pa

from stream_odml.ingest.reasons import Reason
from stream_odml.ingest.table_reader import limit_this_process

BATCH_ROWS = 64
MAX_SAID_CHARS = 300


def main() -> None:
    """Do the one job."""
    job = json.loads(sys.stdin.buffer.read())
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints
    print("\n" + json.dumps(_copied(job, out)), file=sys.stderr, flush=True)


def _copied(job: dict[str, Any], sink: IO[bytes]) -> dict[str, str]:
    try:
        from lance.file import LanceFileReader
    except ImportError as error:
        return {"missing": str(error)[:MAX_SAID_CHARS]}
    limit_this_process(job["memory"], job["limit"])
    try:
        return _copy(LanceFileReader(job["uri"], job["options"] or None), sink, job["limit"])
    except MemoryError:
        return _refused(Reason.OVERSIZED, f"reading it takes more than {job['memory']} bytes of memory")
    except (OSError, ValueError, RuntimeError) as error:
        return {"failed": str(error)[:MAX_SAID_CHARS]}


def _copy(reader: Any, sink: IO[bytes], limit: int) -> dict[str, str]:
    writer = None
    with sink:
        for batch in reader.read_all(batch_size=BATCH_ROWS).to_batches():
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch)
            if sink.tell() > limit:
                return _refused(Reason.OVERSIZED, f"the file decodes to more than {limit} bytes")
        if writer is None:
            return _refused(Reason.EMPTY_FILE, "the file has no rows")
        writer.close()
    return {}


def _refused(reason: Reason, detail: str) -> dict[str, str]:
    return {"refused": str(reason), "detail": detail}


if __name__ == "__main__":
    main()
