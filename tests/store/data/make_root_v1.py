"""Make `root_v1`, a root of schema version 1, by the code of commit 16d1f8f: see the README beside this file."""
# mypy: ignore-errors

import json
import sys
from pathlib import Path

import numpy as np
from stream_odml.gallery.snapshot import GallerySnapshot
from tests.gallery.world import Item, commit_stage, ingest, make_rows, new_root


def main(folder: str) -> None:
    """Two shards, one learnt, an item that came again, a class that is erased; and what a search says of it."""
    root = Path(folder) / "root_v1"
    writer = new_root(str(root))
    first = [Item("a", "rock"), Item("b", "tree"), Item("c", "rock")]
    ingest(writer, "s1", first, seed=1)
    ingest(writer, "s2", [Item("d", "moss"), Item("c", "tree")], seed=2)
    writer.close_task("task-0001", ["s1"], "test")
    version = writer.begin_attempt("task-0001")
    vectors = np.random.default_rng(3).normal(size=(3, 6))
    commit_stage(writer, "task-0001", make_rows("s1", first, vectors, version), seed=1)
    writer.forget("class", "moss")
    writer.release()
    snapshot = GallerySnapshot.load(writer.store)
    rows = {snapshot.item(int(row)).item_id: int(row) for row in snapshot.rows()}
    said = {name: snapshot.vectors(np.array([row]))[0].tolist() for name, row in sorted(rows.items())}
    (Path(folder) / "root_v1.json").write_text(
        json.dumps({"head": snapshot.version, "vectors": said}, indent=1)
    )


if __name__ == "__main__":
    main(sys.argv[1])
