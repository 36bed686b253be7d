"""What a process that is killed leaves half-written where images land holds what may be erased: it does not stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from stream_odml.ingest.message_range import SUFFIX
from stream_odml.ingest.sources import DirectorySource
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.pipeline.pushed import prune_copied, prune_pushed
from stream_odml.storage.atomic import STRAY_S
from stream_odml.storage.files import open_files
from tests.cluster.small_root import claim, index, shard
from tests.ingest.pictures import picture

KILLED = f"""
import os, shutil, signal, sys
from tests.ingest.helpers import land_folder
from stream_odml.storage.publish import publish

def die(file, *rest):
    (rest or [file])[0].write(b"pixels")
    (rest or [file])[0].flush()
    os.kill(os.getpid(), signal.SIGKILL)

root, images = sys.argv[1:]
shutil.copyfileobj = die
for work in (
    lambda: publish(f"{{root}}/push", "push-1.parquet", die),
    lambda: publish(f"{{root}}/spool", "topic{SUFFIX}", die),
    lambda: land_folder(f"{{root}}/push", images),
):
    child = os.fork()
    if child == 0:
        work()
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def test_half_written_files_and_folders_are_named_by_verify_and_deleted_in_time(tmp_path: Path) -> None:
    root, images = tmp_path / "root", tmp_path / "images"
    (images / "elm").mkdir(parents=True)
    (images / "elm" / "1.png").write_bytes(picture(1, "PNG"))
    writer = claim(root)
    ref = shard("first")
    writer.record_landed([ref])
    index(writer, ref, {"elm": 1, "oak": 1})
    subprocess.run([sys.executable, "-c", KILLED, root, images], check=True, timeout=600)
    left = [path for folder in ("push", "spool") for path in (root / folder).rglob("*") if path.is_file()]
    assert len(left) == 3
    assert DirectorySource(root / "push").poll(set()) == []
    writer.forget("class", "elm", 1)
    found = verify_forgotten(str(root), "class", "elm").findings
    assert {str(path.relative_to(root)) for path in left} <= {line.partition(":")[0] for line in found}

    pushed = open_files(str(root / "push"))
    assert prune_pushed(writer.store, pushed, 0) + prune_copied(writer.store, 0) == 0  # it may be at work
    long_ago = time.time() - 2 * STRAY_S
    for path in [*left, *(path.parent for path in left), *(root / "push").iterdir()]:
        os.utime(path, (long_ago, long_ago))
    os.utime(left[-1])  # of the spool: a writer that is slow, and alive
    assert prune_pushed(writer.store, pushed, 0) + prune_copied(writer.store, 0) == 2
    assert (list((root / "push").iterdir()), left[-1].exists()) == ([], True)
    os.utime(left[-1], (long_ago, long_ago))
    assert prune_copied(writer.store, 0) == 1
    found = verify_forgotten(str(root), "class", "elm").findings
    assert [line for line in found if "half-written" in line] == []
    writer.release()
