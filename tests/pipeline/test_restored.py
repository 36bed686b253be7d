"""A stream that goes on from a copy of its root, elsewhere: what was acknowledged is there, and once.

The root that was copied is moved away first, so that nothing can be read where it landed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from confluent_kafka import Producer

from stream_odml.ingest.landing import land_items
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.sources import Source
from stream_odml.pipeline.messages import shard_ref
from stream_odml.pipeline.pushed import prune_pushed
from stream_odml.pipeline.sources import open_sources, push_path, read_options
from stream_odml.storage.files import open_files
from stream_odml.storage.reading import StorageOptions
from stream_odml.store import backup as module
from stream_odml.store.backup import back_up
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.store import Store
from tests.ingest.pictures import picture
from tests.ingest.s3_server import NOT_CHECKED, SERVER, s3_options
from tests.ingest.test_object_store import inbox, server
from tests.pipeline.test_sources import Stream, _here, ids, some
from tests.pipeline.test_topics import producer, send, start
from tests.store.world import commit_stage

__all__ = ["_here", "inbox", "producer", "server"]  # fixtures


def push(stream: Stream, name: str) -> None:
    options = stream.config.storage_options
    land_items(push_path(stream.config), f"push-{name}", some(name), options)


def learn_from(stream: Stream) -> list[str]:
    """What a stage would read: ids of the images of all shards."""
    shards = stream.writer.store.ledger.shards.values()
    refs = [shard_ref(shard) for shard in shards]
    rows = [row for ref in refs for row in read_shard(ref, read_options(stream.config, ref.uri))]
    assert all(isinstance(row, RawItem) for row in rows), rows
    return sorted(row.item_id for row in rows if isinstance(row, RawItem))


def moved(stream: Stream, to: str, options: StorageOptions | None = None) -> None:
    """Copy its root to `to`, by way of a folder, and take it away."""
    stream.close()
    root, own = stream.config.root, stream.config.storage_options
    copy = Path(to if "://" not in to else str(Path(root).parent)).parent / "monday"
    back_up(root, str(copy), own)
    if "://" in root:
        files = open_files(root, own)
        for info in list(files.list("push")):
            files.delete(info.path)
    else:
        Path(root).rename(f"{root}-gone")
    back_up(str(copy), to, None, dict(options or {}) or None)
    shutil.rmtree(copy)


def test_pushes_are_there_and_once(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "root", {"kind": "none"})
    push(stream, "known")
    stream.until(lambda: stream.items() == ids("known"))
    push(stream, "acknowledged")
    moved(stream, str(tmp_path / "elsewhere" / "root"))
    again = Stream(tmp_path / "elsewhere" / "root", {"kind": "none"})
    again.until(lambda: again.items() == ids("known", "acknowledged"))
    assert learn_from(again) == ids("known", "acknowledged")
    again.close()
    moved(again, str(tmp_path / "third" / "root"))
    assert learn_from(Stream(tmp_path / "third" / "root", {"kind": "none"})) == ids("known", "acknowledged")


@pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)
@pytest.mark.parametrize("way", ["to a bucket", pytest.param("from a bucket", marks=pytest.mark.slow)])
def test_another_store_gives_other_hashes_and_each_push_is_there_once(
    way: str, server: int, inbox: str, tmp_path: Path
) -> None:
    s3, places = s3_options(server), [str(tmp_path / "root"), f"{inbox}/root"]
    options = [None, s3]
    if way == "from a bucket":
        places, options = places[::-1], options[::-1]
    stream = Stream(places[0], {"kind": "none"}, options[0])
    push(stream, "known")
    stream.until(lambda: stream.items() == ids("known"))
    push(stream, "acknowledged")
    moved(stream, places[1], options[1])
    again = Stream(places[1], {"kind": "none"}, options[1])
    again.until(lambda: len(again.writer.ledger.shards) > 1 and len(again.items()) > 12)
    assert again.items() == ids("known", "acknowledged")
    assert learn_from(again) == ids("known", "acknowledged")
    again.close()


def test_ranges_of_a_topic_are_there_and_once(producer: tuple[str, Producer], tmp_path: Path) -> None:
    servers, sender = producer
    stream = start(tmp_path / "root", servers, key_is_id=True)
    send(sender, "known", picture(0, "PNG"))
    stream.until(lambda: stream.items() == ["known"])
    stream.discovery.stop()
    send(sender, "copied", picture(1, "PNG"))
    source, stamps = open_sources(stream.config)[0], [str(s.detail["stamp"]) for s in _shards(stream)]
    copied = _polled(source, stamps)
    moved(stream, str(tmp_path / "elsewhere" / "root"))
    again = start(tmp_path / "elsewhere" / "root", servers, key_is_id=True)
    again.until(lambda: again.items() == ["copied", "known"])
    assert learn_from(again) == ["copied", "known"]
    assert copied <= {shard.shard_id for shard in _shards(again)}, (
        "read where it was copied to, not sent again"
    )
    again.close()


def _shards(stream: Stream) -> list[ShardState]:
    return list(stream.writer.store.ledger.shards.values())


def _polled(source: Source, known: list[str]) -> set[str]:
    while not (found := {ref.shard_id for ref in source.poll(known)}):
        pass
    source.close()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    "indexed", ["after the tables are pinned", "before, and pushed after the copy began"]
)
def test_a_push_that_is_learnt_and_pruned_during_the_copy_is_in_it(
    indexed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(tmp_path / "root", {"kind": "none"})
    push(stream, "first")
    pin, pinned = module._pinned, list[dict[str, int]]()

    def index() -> None:
        count = len(stream.writer.ledger.shards) + 1
        stream.until(lambda: len(stream.writer.ledger.indexed) == count)

    def learn_and_prune() -> None:
        writer = stream.writer
        writer.close_task("task-0001", list(writer.ledger.shards), "test")
        commit_stage(writer, "task-0001", None, 0)
        assert prune_pushed(writer.store, open_files(push_path(stream.config)), 0) == len(
            writer.ledger.shards
        )

    def pin_and_prune(store: Store) -> dict[str, int]:
        if not pinned and indexed.startswith("before"):
            index()
            push(stream, "second")
            index()
        pinned.append(pin(store))
        if len(pinned) == 1:
            if indexed.startswith("after"):
                index()
            learn_and_prune()
        return pinned[-1]

    monkeypatch.setattr(module, "_pinned", pin_and_prune)
    back_up(str(tmp_path / "root"), str(tmp_path / "copy"))
    copy = Store.open(str(tmp_path / "copy"))
    if indexed.startswith("after"):
        assert (len(pinned), dict(copy.ledger.shards)) == (1, {})
        assert (tmp_path / "copy" / "push" / "push-first.parquet").exists()
    else:
        assert (len(pinned), copy.tree.learnt()) == (2, frozenset({"task-0001"}))
    stream.close()
