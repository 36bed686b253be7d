"""Seam 39: a label moves an item to another class, and everything of the item follows it: its picture, its pushed
original, and its erasure, whatever comes between the reading of a label and its commit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import build_embedder
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.service.thumbnails import Thumbnails
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.writer import IngestBatch, Writer
from tests.ingest.pictures import picture

ERASE = MaintenancePolicy(retention=timedelta(0), orphan_age=timedelta(0))
FOLDERS = ("thumbnails", "holdout")


class Labelled:
    """A root of images in exact form, all of them held out, to whose push folder images and labels are sent."""

    def __init__(self, root: Path) -> None:
        self.root, self.push = root, root / "push"
        self.writer = Writer.claim(Store.create(str(root), 8, form="exact", keep_gallery=False), "test")
        self.writer.commit_root({STUDENT: b"a trunk"})
        self.model = build_embedder(EmbedderSpec("conv4", dim=8, image_size=16), 0)
        self.model.eval()
        self._seen: set[str] = set()

    def send(self, name: str, items: dict[str, str], images: bool = True) -> ShardRef:
        pairs = enumerate(items.items())
        new = [
            NewItem(picture(at) if images else b"", c, item, is_label=not images) for at, (item, c) in pairs
        ]
        land_items(self.push, f"push-{name}", new)
        (ref,) = DirectorySource(self.push).poll(self._seen)
        self._seen.add(ref.stamp)
        self.writer.record_landed([ref])
        return ref

    def read(self, ref: ShardRef) -> IngestBatch:
        store = Store.open(str(self.root), keep_gallery=False)
        options = IndexOptions(1 << 20, True, 1.0, codes="int8", store=store)
        return index_shard(ref, self.model, store.tree.head, store.files, options)

    def land(self, name: str, items: dict[str, str], images: bool = True) -> ShardRef:
        ref = self.send(name, items, images)
        self.writer.commit_ingest(self.read(ref))
        return ref

    def erase(self, kind: str, name: str) -> None:
        self.writer.forget(kind, name, 1)  # type: ignore[arg-type]
        self.writer.maintain(ERASE)

    @property
    def classes(self) -> dict[str, str]:
        rows = self.writer.store.gallery_rows(vectors=False)
        return dict(zip(rows["item_id"].to_pylist(), rows["class_name"].to_pylist(), strict=True))

    def pictures(self, folder: str) -> set[str]:
        return {
            i for file in (self.root / folder).glob("*") for i in pq.read_table(file)["item_id"].to_pylist()
        }


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Labelled]:
    stream = Labelled(tmp_path / "root")
    yield stream
    stream.writer.release()


def test_a_label_takes_the_picture_along(stream: Labelled) -> None:
    images = stream.land("a", {"x": "old", "y": "old"})
    labels = stream.land("b", {"x": "new"}, images=False)
    thumbnails = Thumbnails(stream.writer.store.files)
    assert thumbnails.get(labels.shard_id, "x") == thumbnails.get(images.shard_id, "x") is not None
    held_out = pq.read_table(stream.root / "holdout" / f"{labels.shard_id}.parquet").to_pylist()
    assert held_out == [{"item_id": "x", "class_name": "new", "image": picture(0)}]


def test_the_earlier_class_takes_nothing_of_an_item_that_left_it(stream: Labelled) -> None:
    """x left it, and left the next one, too; y left it once."""
    stream.land("a", {"x": "old", "y": "old"})
    stream.land("b", {"z": "old"})
    stream.land("c", {"x": "new", "y": "other"}, images=False)
    labels = stream.land("d", {"x": "newest"}, images=False)
    for name in ("old", "new"):
        stream.erase("class", name)
        proof = verify_forgotten(str(stream.root), "class", name)
        assert proof.findings == []
        copies = [Path(uri).name for uri in proof.inbox]
        assert copies == (["push-b.parquet"] if name == "old" else [])
    for folder in FOLDERS:
        assert stream.pictures(folder) == {"x", "y"}
    assert Thumbnails(stream.writer.store.files).get(labels.shard_id, "x") is not None
    assert stream.classes == {"x": "newest", "y": "other"}


def test_the_present_class_takes_picture_and_original(stream: Labelled) -> None:
    stream.land("a", {"x": "old"})
    stream.land("b", {"y": "old"})
    stream.land("c", {"x": "new"}, images=False)
    stream.erase("class", "new")
    for folder in FOLDERS:
        assert stream.pictures(folder) == {"y"}
    assert stream.classes == {"y": "old"}
    command = ["forget", str(stream.root), "--class", "new", "--verify"]
    said = CliRunner().invoke(app, command).output
    assert "push-a.parquet (still to be learnt)" in said
    assert "push-c.parquet (still to be learnt)" in said
    assert "push-b.parquet" not in said
    stream.writer.close_task("task-0001", [s.shard_id for s in stream.writer.ledger.indexed.values()], "test")
    stream.writer.skip_task("task-0001", "test")
    done = CliRunner().invoke(app, [*command, "--inbox", "--yes"])
    assert done.exit_code == 0, done.output
    assert {file.name for file in stream.push.glob("*.parquet")} == {"push-b.parquet"}


@pytest.mark.parametrize(("kind", "name"), [("class", "old"), ("shard", "push-a.parquet"), ("item", "x")])
@pytest.mark.parametrize("back", [False, True])
def test_a_label_that_was_read_before_an_erasure_revives_nothing(
    stream: Labelled, kind: str, name: str, back: bool
) -> None:
    """`back`: the item comes again before the label of what it was is committed."""
    images = stream.land("a", {"x": "old", "y": "other"})
    labels = stream.read(stream.send("b", {"x": "new"}, images=False))
    stream.erase(kind, images.shard_id if kind == "shard" else name)
    if back:
        stream.land("c", {"x": "another"})
    stream.writer.commit_ingest(labels)
    stream.writer.maintain(ERASE)
    others = {} if kind == "shard" else {"y": "other"}
    assert stream.classes == ({"x": "another", **others} if back else others)
    for folder in FOLDERS:
        assert stream.pictures(folder) == set(stream.classes)
        assert (
            not list((stream.root / folder).glob(f"{labels.shard_ids[0]}*"))
            or not pq.read_table(stream.root / folder / f"{labels.shard_ids[0]}.parquet").num_rows
        )


def test_a_label_that_is_read_again_after_an_erasure_leaves_no_picture(stream: Labelled) -> None:
    stream.land("a", {"x": "old"})
    ref = stream.send("b", {"x": "new"}, images=False)
    stream.read(ref)  # and its indexer is killed
    stream.erase("class", "old")
    stream.writer.commit_ingest(stream.read(ref))
    assert stream.classes == {}
    assert all(stream.pictures(folder) == set() for folder in FOLDERS)
