"""A topic from its messages to the gallery: each item once, erasure and tasks by message, and copies until learnt."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from stream_odml.cluster import ingestion
from stream_odml.config.stream import ConfigError, parse_config
from stream_odml.ingest import kafka_brokers, kafka_retention
from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.kafka_source import KafkaSource
from stream_odml.ingest.message_range import SUFFIX
from stream_odml.ingest.spool import Spool
from stream_odml.learn.world import World
from stream_odml.pipeline import sources
from stream_odml.pipeline.metrics import DriverMetrics, StreamFigures
from stream_odml.pipeline.pushed import move_back, prune_copied, without_images
from stream_odml.pipeline.sources import open_sources, read_options
from stream_odml.pipeline.stage_run import StageRun
from stream_odml.storage.atomic import STRAY_S
from stream_odml.storage.files import open_files
from stream_odml.storage.reading import StorageOptions
from stream_odml.store.store import Store
from tests.ingest.kafka_broker import mock_broker
from tests.ingest.pictures import picture
from tests.pipeline.test_sources import Stream, _Here
from tests.store.world import Item, Shard, commit_stage, ingest, new_root

TOPIC = "photos"


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Producer]]:
    monkeypatch.setattr(ingestion, "ray", _Here())
    monkeypatch.setattr(kafka_brokers, "ID_S", 0.05)
    monkeypatch.setattr(kafka_retention, "ASK_S", 0.1)
    monkeypatch.setattr(sources, "KafkaProcess", _read_here)
    with mock_broker() as made:
        made[1].list_topics(TOPIC, timeout=60)  # makes it
        yield made


def _read_here(
    topics: Sequence[str], options: KafkaOptions, place: str, storage: StorageOptions | None
) -> KafkaSource:
    return KafkaSource(topics, options, Spool(place, storage))


def start(root: Path, servers: str, **kafka: Any) -> Stream:
    options = {"servers": servers, "range_s": 0.05, "options": {"log_level": "0"}, **kafka}
    return Stream(root, {"kind": "kafka", "path": TOPIC, "kafka": options})


def send(producer: Producer, key: str, value: bytes | None, partition: int = 0, **headers: Any) -> None:
    headers = {"class": f"class {len(key) % 3}", **headers}
    producer.produce(TOPIC, value, key=key, partition=partition, headers=headers)
    assert producer.flush(10) == 0


def test_messages_become_items_a_task_and_an_erasure(producer: tuple[str, Producer], tmp_path: Path) -> None:
    servers, sender = producer
    stream = start(tmp_path / "root", servers, key_is_id=True, tombstones="erase")
    names = [f"item {n}" for n in range(12)]
    for n, name in enumerate(names):
        send(sender, name, picture(n, "PNG"), n % 4, **{"class": f"class {n % 3}"})
    send(sender, "bad", b"no image", 1)
    stream.until(lambda: stream.items() == sorted(names))
    while len(stream.writer.store.quarantine_rows()) < 1:
        stream.until(lambda: True)
    (bad,) = stream.writer.store.quarantine_rows().to_pylist()
    assert (bad["reason"], bad["detail"].partition(":")[0]) == ("not_an_image", f"{TOPIC}/1/3")

    # The second of them came again after it was erased.
    for name in names[:2]:
        send(sender, name, None, 2)
    send(sender, names[1], picture(50, "PNG"), 2)
    left = sorted(names[1:])
    stream.until(lambda: len(stream.writer.ledger.tombstones) == 2)

    def seen() -> list[str]:
        visible = stream.writer.store.metadata()
        return sorted(
            item
            for item, name, shard in zip(
                *(visible[c].to_pylist() for c in ("item_id", "class_name", "shard_id")), strict=True
            )
            if not stream.writer.ledger.forgotten(shard, name, item)
        )

    # What came again may be of a later range than what erased it.
    stream.until(lambda: not stream.writer.ledger.landed and seen() == left)

    send(sender, "control", b"", 3, **{"task-complete": "animals"})
    stream.until(lambda: len(stream.writer.ledger.tasks) == 1)
    (task,) = stream.writer.ledger.tasks.values()
    assert task.reason == "manifest: task animals is complete"
    assert task.images == 13  # 12, and one that came again
    stream.until(lambda: sum(f.searchable for f in stream.discovery.figures()) == 12 + 1 + 3 + 1)
    figures = {f.partition: f for f in stream.discovery.figures()}
    exported = DriverMetrics()
    exported.figures = StreamFigures(logs=list(figures.values()))
    labels = {"topic": TOPIC, "partition": "2"}
    for well in ("trouble", "at_risk_messages"):
        assert exported.registry.get_sample_value(f"stream_odml_topic_{well}", labels) == 0
    assert exported.registry.get_sample_value("stream_odml_topic_offset_total", labels) == 6
    assert exported.registry.get_sample_value("stream_odml_topic_lag_messages", labels) == 0
    uri = next(s.uri for s in stream.writer.ledger.shards.values() if s.format == "messages")
    assert read_options(stream.config, uri) is stream.config.storage_options
    stream.close()


def test_a_restart_goes_on_where_the_ledger_says(producer: tuple[str, Producer], tmp_path: Path) -> None:
    servers, sender = producer
    stream = start(tmp_path / "root", servers)
    for n in range(8):
        send(sender, str(n), picture(n, "PNG"), n % 4, id=f"i{n}")
    stream.until(lambda: len(stream.items()) == 8)
    stream.close()
    for n in range(8, 16):
        send(sender, str(n), picture(n, "PNG"), n % 4, id=f"i{n}")
    again = start(tmp_path / "root", servers)
    again.until(lambda: len(again.items()) >= 16)
    assert again.items() == sorted(f"i{n}" for n in range(16))
    assert len(again.writer.store.quarantine_rows()) == 0
    again.close()


def test_a_task_is_learnt_after_its_topic_has_deleted_it(
    producer: tuple[str, Producer], tmp_path: Path
) -> None:
    servers, sender = producer
    stream = start(tmp_path / "root", servers)
    for n in range(48):
        send(sender, str(n), picture(n, "PNG"), n % 4, id=f"i{n}")
    send(sender, "control", b"", 0, **{"task-complete": "animals"})
    stream.until(lambda: len(stream.writer.ledger.tasks) == 1)
    stream.discovery.stop()
    for n in range(4 * 6000):  # the mock keeps some 5 MiB of a partition
        sender.produce(TOPIC, b"x" * 1000, partition=n % 4)
        sender.poll(0)
    assert sender.flush(60) == 0
    reader = Consumer({"bootstrap.servers": servers, "group.id": "look", "log_level": 0})
    for partition in range(4):
        assert reader.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=60)[0] > 12
    reader.close()

    learning = replace(stream.config.learning, base_steps=3, classes_per_batch=2, images_per_class=3)
    config = stream.config.model_copy(update={"learning": learning})
    order = stream.stages.next_order()
    assert order is not None
    run = StageRun(config, order, Store.open(config.root), World(), lambda progress: None)
    run.open()
    while run.learner.next_step < run.learner.total_steps:
        run.step()
    assert stream.stages.commit(run.finish()) == order.version_id
    run.close()
    rows = stream.writer.store.gallery_rows()
    anew = [
        item
        for item, v in zip(*(rows[c].to_pylist() for c in ("item_id", "version")), strict=True)
        if v == order.version_id
    ]
    assert sorted(set(anew)) == sorted(f"i{n}" for n in range(48))
    assert len(stream.writer.store.quarantine_rows()) == 0
    stream.writer.release()


class _Copied(Shard):
    def __init__(self, shard_id: str) -> None:
        super().__init__(shard_id, uri=f"/root/spool/{shard_id}{SUFFIX}")


def test_copies_stay_until_they_are_learnt_and_strays_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.store.world.Shard", _Copied)
    writer = new_root(str(tmp_path))
    root, spool = writer.tree.head, tmp_path / "spool"
    spool.mkdir()
    for name in ("learnt", "waits"):
        ingest(writer, name, [Item(f"{name}/0", name)])
    ingest(writer, "empty", [])  # as where a partition begins
    for name in ("learnt", "waits", "stray", "fresh", "empty"):
        (spool / f"{name}{SUFFIX}").write_bytes(b"rows")
    long_ago = time.time() - 2 * STRAY_S
    for name in ("waits", "stray", "empty"):
        os.utime(spool / f"{name}{SUFFIX}", (long_ago, long_ago))
    writer.close_task("task-0001", ["learnt", "empty"], "test")
    commit_stage(writer, "task-0001", None, seed=1)
    pushed = open_files(str(tmp_path / "push"))
    assert prune_copied(writer.store, keep_s=3600) == 2
    assert sorted(p.name for p in spool.iterdir()) == [f"{n}{SUFFIX}" for n in ("fresh", "learnt", "waits")]
    assert without_images(writer.store, pushed, ["task-0001"]) == []
    assert prune_copied(writer.store, keep_s=0) == 1
    assert sorted(p.name for p in spool.iterdir()) == [f"{n}{SUFFIX}" for n in ("fresh", "waits")]
    assert move_back(writer, pushed, root, relearn=True) == []
    assert "keep_pushed_h" in str(writer.ledger.tasks["task-0001"].skipped)
    writer.release()


def test_options_that_the_client_does_not_know_are_named() -> None:
    kafka = {"options": {"no_such_option": "1"}}
    config = parse_config({"source": {"kind": "kafka", "path": TOPIC, "kafka": kafka}})
    with pytest.raises(ConfigError, match="no_such_option"):
        open_sources(config)
    with pytest.raises(ConfigError, match=r"source\.path"):
        open_sources(parse_config({"source": {"kind": "kafka", "path": " , "}}))
    other = {"kind": "kafka", "path": TOPIC, "kafka": {"generation": {"photo": 1}}}
    with pytest.raises(ConfigError, match=r"photo is no topic of source\.path 'photos'"):
        open_sources(parse_config({"source": other}))


@pytest.mark.parametrize(
    "kafka", [{"value": "no_such_module:decode"}, {"value": "avro", "schemas": {"": "no JSON"}}]
)
def test_a_decoder_that_cannot_be_used_is_refused_before_a_range_is_copied(kafka: dict[str, Any]) -> None:
    config = parse_config({"source": {"kind": "kafka", "path": TOPIC, "kafka": kafka}})
    with pytest.raises(ConfigError, match="cannot be used"):
        open_sources(config)
