"""Every configured source, from landing to the gallery: each row once, also when its producer repeats itself.

The indexer runs here instead of in an actor; everything else is what the driver runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from deltalake import write_deltalake

from stream_odml.cluster import ingestion
from stream_odml.cluster.indexer import Indexer
from stream_odml.cluster.ingestion import Discovery, Ingestion
from stream_odml.config.service import ServiceOptions
from stream_odml.config.stream import ConfigError, StreamConfig, parse_config
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.learn.embedder import build_embedder, embedder_to_bytes
from stream_odml.pipeline.sources import open_sources, push_path
from stream_odml.pipeline.stages import Stages
from stream_odml.service.decoding import Decoding
from stream_odml.service.push import PushInbox
from stream_odml.storage import reading as storage
from stream_odml.storage.publish import file_sha256
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.ingest.pictures import picture
from tests.ingest.s3_server import NOT_CHECKED, SERVER, s3_options
from tests.ingest.test_object_store import inbox, server
from tests.ingest.throttling import KINDS, Throttle

__all__ = ["inbox", "server"]  # fixtures


class _Here:
    """Stands in for ray: a call is made at once, in this process."""

    exceptions = ray.exceptions

    def wait(self, calls: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return calls, []

    def get(self, call: Any) -> Any:
        return call.value


class _Actor:
    def __init__(self, indexer: Indexer) -> None:
        self._indexer, self.index = indexer, self

    def remote(self, refs: Any, version: str) -> Any:
        return _Call(self._indexer.index(refs, version))


class _Call:
    def __init__(self, value: Any) -> None:
        self.value = value


class Stream:
    """Discovery, tier 1 and the task boundary over one root."""

    def __init__(
        self, root: Path | str, source: dict[str, Any], options: dict[str, str] | None = None
    ) -> None:
        self.config: StreamConfig = parse_config(
            {
                "root": str(root),
                "method": "distilled",
                "store": {"options": options or {}},
                "source": {"poll_s": 0.05, **source},
                "model": {"backbone": "conv4", "dim": 8, "image_size": 16},
                "boundary": {"new_classes": None, "images": None, "age_s": None},
            }
        )
        self.writer = Writer.claim(Store.create(str(root), 8, options, keep_gallery=False), "test")
        self.writer.commit_root({STUDENT: embedder_to_bytes(build_embedder(self.config.model, 0))})
        actors = [_Actor(Indexer(self.config.model_dump_json()))]
        self.tier = Ingestion(self.writer, actors, self.config.ingest)
        self.stages = Stages(self.writer, self.config.boundary, 1)
        self.discovery = Discovery(open_sources(self.config), self.writer.store, 0.05)
        self.discovery.start()

    def until(self, done: Callable[[], bool]) -> None:
        """Beat as the driver does."""
        deadline = time.monotonic() + 240
        while not done():
            assert time.monotonic() < deadline, self.discovery.error
            while (refs := self.discovery.take()) is not None:
                self.tier.land(refs)
            self.tier.dispatch(self.writer.tree.head)
            self.tier.gather(0.02)
            self.tier.commit()
            self.stages.close_tasks()

    def items(self) -> list[str]:
        """Ids in the gallery, each as often as it is there."""
        return sorted(self.writer.store.gallery_rows()["item_id"].to_pylist())

    def close(self) -> None:
        self.discovery.stop()
        self.writer.release()


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "ray", _Here())


def some(name: str) -> list[NewItem]:
    return [NewItem(picture(i, "PNG"), f"class {i % 3}", f"{name}/{i}") for i in range(12)]


def ids(*names: str) -> list[str]:
    return sorted(f"{name}/{i}" for name in names for i in range(12))


@pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)
def test_an_s3_prefix(server: int, inbox: str, tmp_path: Path) -> None:
    s3 = s3_options(server)
    stream = Stream(tmp_path / "root", {"kind": "s3", "path": inbox, "storage_options": s3})
    land_items(inbox, "a", some("a"), s3)
    stream.until(lambda: stream.items() == ids("a"))
    land_items(inbox, "a", some("a"), s3)
    land_items(inbox, "b", some("b"), s3)
    complete_task(inbox, "both", ["a.parquet", "b.parquet"], s3)
    stream.until(lambda: len(stream.writer.ledger.tasks) == 1)
    assert stream.items() == ids("a", "b")
    (task,) = stream.writer.ledger.tasks.values()
    assert task.reason == "manifest: task both is complete"
    stream.close()


@pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)
def test_a_store_that_throttles_loses_and_doubles_nothing(
    server: int, inbox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RETRY_ATTEMPTS", 2)  # so that not all of it is fixed below our sight
    monkeypatch.setattr(ingestion, "RETRY_S", 0.2)
    names = [f"s{n}" for n in range(4)]
    for name in names:
        land_items(inbox, name, some(name), s3_options(server))
    with Throttle(server, share=0.4, seed=3).serving() as throttle:
        s3 = s3_options(throttle.port)
        stream = Stream(tmp_path / "root", {"kind": "s3", "path": inbox, "storage_options": s3})
        stream.until(lambda: len(stream.writer.ledger.indexed) == len(names))
        assert stream.items() == ids(*names)
        assert len(stream.writer.store.quarantine_rows()) == 0
        assert not stream.writer.ledger.in_state("set_aside")
        assert set(throttle.refused) == set(KINDS)
        assert stream.discovery.failures + stream.tier.unreachable > 0, throttle.refused
        stream.close()


def test_a_delta_table_followed_by_version(tmp_path: Path) -> None:
    table = tmp_path / "photos"
    stream = Stream(tmp_path / "root", {"kind": "delta", "path": str(table)})
    stream.until(lambda: not stream.items())  # a table that is not there yet is waited for
    for name in ("a", "b"):
        write_deltalake(table, _table(some(name)), mode="append")
    stream.until(lambda: stream.items() == ids("a", "b"))
    assert [s.name for s in stream.writer.ledger.shards.values()] == ["photos-v00000000", "photos-v00000001"]
    stream.close()


def test_the_source_that_the_page_on_writing_one_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "deploy" / "sources.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "feeds.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    feed = tmp_path / "feed.txt"
    stream = Stream(tmp_path / "root", {"kind": "feeds:from_feed", "path": str(feed)})
    announced = []
    for name in ("b", "a"):
        path = Path(land_items(tmp_path / "elsewhere", name, some(name)))
        announced.append(f"{file_sha256(path)} {path}")
    feed.write_text(f"{announced[0]}\n{announced[1]}")  # the second line is not whole yet
    stream.until(lambda: stream.items() == ids("b"))
    feed.write_text("\n".join([*announced, f"{'0' * 64} {tmp_path}/gone.parquet", ""]))
    stream.until(lambda: len(stream.writer.ledger.indexed) == 3)
    assert stream.items() == ids("a", "b")
    assert [s.name for s in stream.writer.ledger.shards.values()] == [
        "b.parquet",
        "a.parquet",
        "gone.parquet",
    ]
    assert stream.writer.store.quarantine_rows()["reason"].to_pylist() == ["missing_file"]
    stream.close()


def test_a_source_that_cannot_be_made_says_why() -> None:
    for kind in ("no_such_module:make", "json:no_such_function"):
        config = parse_config({"source": {"kind": kind}})
        with pytest.raises(ConfigError, match=f"source.kind '{kind}' cannot be had"):
            open_sources(config)


def _pushed_three_times(stream: Stream) -> None:
    for _ in range(3):
        decoding = Decoding(ServiceOptions())
        inbox = PushInbox(push_path(stream.config), decoding, stream.config.storage_options)
        inbox.land(list(some("a")), "key-1")
        inbox.close()
        decoding.close()
    stream.until(lambda: stream.items() == ids("a"))
    assert len(stream.writer.ledger.shards) == 1
    stream.close()


def test_pushes_repeated_after_a_lost_answer(tmp_path: Path) -> None:
    _pushed_three_times(Stream(tmp_path / "root", {"kind": "none"}))


@pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)
def test_pushes_to_a_root_in_an_object_store(server: int, inbox: str) -> None:
    _pushed_three_times(Stream(f"{inbox}-root", {"kind": "none"}, s3_options(server)))


def _table(items: list[NewItem]) -> pa.Table:
    return pa.table(
        {
            "image": pa.array([item.image for item in items], pa.binary()),
            "class_name": [item.class_name for item in items],
            "id": [item.item_id for item in items],
        }
    )
