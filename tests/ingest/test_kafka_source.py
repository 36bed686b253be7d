"""Topics as shards: every offset is an item, a quarantined row or a reported gap, whatever happens in between."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from stream_odml.ingest import kafka_brokers, kafka_retention, kafka_source
from stream_odml.ingest.kafka_brokers import Brokers
from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.kafka_source import KafkaSource
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.spool import Spool
from stream_odml.ingest.topic_position import Stamp, TopicReplaced
from tests.ingest.followed import Followed, send
from tests.ingest.helpers import read
from tests.ingest.pictures import picture
from tests.ingest.sasl_broker import refusing_broker

TOPIC = "photos"


@pytest.fixture(autouse=True)
def _the_mock_tells_neither_ids_nor_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_brokers, "ID_S", 0.05)
    monkeypatch.setattr(kafka_retention, "ASK_S", 0.1)


def test_each_message_is_one_item_in_the_order_of_its_partition(broker: Any, follow: Any) -> None:
    followed = follow(range_messages=5)
    send(broker, followed.topic, range(60))
    found = followed.until(60)
    assert sorted(item.item_id for item in found) == sorted(f"i{n}" for n in range(60))
    for partition in range(4):
        own = [int(item.item_id[1:]) for item in found if int(item.item_id[1:]) % 4 == partition]
        assert own == sorted(own)
    by_id = {item.item_id: item for item in found}
    assert by_id["i7"].image == picture(7)
    assert (by_id["i7"].class_name, by_id["i7"].attributes["colour"]) == ("class 1", "red")
    assert re.fullmatch(rf"{followed.topic}/3/\d+", by_id["i7"].attributes["path"])
    assert abs((by_id["i7"].time or 0).timestamp() - time.time()) < 120  # type: ignore[union-attr]
    assert max(len(read(ref)[0]) for ref in followed.refs) == 5
    assert not followed.problems()
    assert followed.refs[-1].name.endswith(".messages.parquet")


def test_the_same_range_gives_the_same_file(broker: Any, follow: Any, tmp_path: Path) -> None:
    first = follow(range_messages=7)
    send(broker, first.topic, range(28))
    first.until(28)
    again = Followed(broker[0], tmp_path / "again", first.topic, range_messages=7)
    again.until(28)
    again.source.close()
    assert {ref.shard_id for ref in again.refs} == {ref.shard_id for ref in first.refs}


def test_a_driver_that_dies_before_the_ledger_knows_loses_and_doubles_nothing(
    broker: Any, follow: Any
) -> None:
    followed = follow(range_messages=3)
    for step in range(4):
        send(broker, followed.topic, range(20 * step, 20 * step + 20))
        followed.until(20 * step + 20)
        followed.die(forget=3)
    found = followed.until(80)
    assert sorted(item.item_id for item in found) == sorted(f"i{n}" for n in range(80))
    assert not followed.problems()


def test_the_spool_serves_what_the_topic_has_deleted_since(broker: Any, follow: Any) -> None:
    followed = follow(range_messages=10)
    send(broker, followed.topic, range(10), partition=0)
    followed.until(10)
    landed = [ref for ref in followed.refs if ref.size_bytes and read(ref)[0]]
    followed.die(forget=len(followed.refs) - followed.refs.index(landed[0]))  # copied, and never ledgered
    send(broker, followed.topic, range(10, 20_010), 0, value=b"x" * 1000)
    while not any(ref.shard_id == landed[0].shard_id for ref in followed.refs):
        followed.poll()
    assert [item.item_id for item in read(landed[0])[0]] == [f"i{n}" for n in range(10)]


def test_what_retention_deleted_is_named(broker: Any, follow: Any) -> None:
    followed = follow(range_messages=1000)
    send(broker, followed.topic, range(10), partition=0)
    followed.until(10)
    followed.source.close()
    send(broker, followed.topic, range(10, 15_010), 0, value=b"x" * 1000)  # the mock keeps 5 MiB of them
    low, high = _ends(broker[0], followed.topic)
    assert 10 < low < high
    followed.source = followed.begin()
    followed.until(10 + high - low)
    lost = [p for p in followed.problems() if p.reason == "lost_messages"]
    place = f"{followed.topic}/0"
    assert [p.detail for p in lost] == [
        f"{place}: {low - 10} offsets, 10 to {low - 1}, deleted before they were read: the topic begins at {low}"
    ]
    followed.source.settle([], lambda _: True)
    (figures,) = [f for f in followed.source.figures() if f.partition == 0]
    assert (figures.lost, figures.lag, figures.searchable) == (low - 10, 0, high)


def _ends(servers: str, topic: str) -> tuple[int, int]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "look", "log_level": 0})
    found = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=60)
    consumer.close()
    return int(found[0]), int(found[1])


def test_poison_is_quarantined_with_its_place(broker: Any, follow: Any) -> None:
    followed = follow()
    send(broker, followed.topic, range(2), partition=1)
    send(broker, followed.topic, range(2, 3), partition=1, headers={"id": "no class"})
    send(broker, followed.topic, range(3, 4), partition=1, value=None)
    send(broker, followed.topic, range(4, 5), partition=1, headers={"class": b"\xff\xfe"})
    send(broker, followed.topic, range(5, 6), partition=1)
    found = followed.until(3)
    assert [item.item_id for item in found] == ["i0", "i1", "i5"]
    place = f"{followed.topic}/1"
    assert [(p.reason, p.detail.partition(":")[0]) for p in followed.problems()] == [
        ("missing_label", f"{place}/2"),
        ("missing_image", f"{place}/3"),
        ("bad_label", f"{place}/4"),
    ]


def test_a_message_without_an_id_is_named_by_its_place(broker: Any, follow: Any) -> None:
    followed = follow()
    send(broker, followed.topic, range(3), partition=2, headers={"class": "c"})
    assert [item.item_id for item in followed.until(3)] == [f"{followed.topic}/2/{n}" for n in range(3)]


def test_the_last_of_one_id_counts(broker: Any, follow: Any) -> None:
    followed = follow(key_is_id=True)
    for n in range(3):
        send(broker, followed.topic, range(n, n + 1), partition=0, headers={"class": f"c{n}"}, key=b"one")
    (item,) = followed.until(1)
    assert (item.item_id, item.class_name) == ("one", "c2")
    assert [p.reason for p in followed.problems()] == ["duplicate_id"] * 2


def test_json_records(broker: Any, follow: Any) -> None:
    import base64

    followed = follow(value="json")
    image = base64.b64encode(picture(1)).decode()
    good = {"image": image, "class_name": "cat", "id": 7, "attributes": {"colour": "blue"}}
    for value in (json.dumps(good), "{", json.dumps({**good, "image": "?"}), "[1]", "[" * 100_000):
        send(broker, followed.topic, range(1), partition=0, value=value.encode(), headers={})
    (item,) = followed.until(1)
    assert (item.image, item.class_name, item.item_id) == (picture(1), "cat", "7")
    assert item.attributes == {"colour": "blue", "path": f"{followed.topic}/0/0"}
    while len(followed.problems()) < 4:
        followed.poll()
    assert [p.reason for p in followed.problems()] == ["bad_message"] * 4


def test_tombstones_erase_what_came_before_and_nothing_after(broker: Any, follow: Any) -> None:
    followed = follow(key_is_id=True, tombstones="erase")
    for n, value in enumerate((picture(1), None, None, picture(2))):
        key, headers = ("b" if n == 2 else "a"), {"class": "c"}
        send(broker, followed.topic, range(n, n + 1), partition=0, key=key, value=value, headers=headers)
    followed.until(2)
    ranges = [(Stamp.of(ref.stamp), ref.erases) for ref in followed.refs]
    own = [(stamp.start, stamp.end, erases) for stamp, erases in ranges if stamp and stamp.partition == 0]
    assert own == [(0, 0, ()), (0, 1, ()), (1, 3, ("a", "b")), (3, 4, ())]
    assert not followed.problems()
    assert ShardRef.from_dict(json.loads(json.dumps(followed.refs[-2].to_dict()))) == followed.refs[-2]
    # One that was copied and not ledgered still erases.
    erasing = next(i for i, ref in enumerate(followed.refs) if ref.erases)
    expected = followed.refs[erasing].erases
    followed.die(forget=len(followed.refs) - erasing)
    while not any(ref.erases for ref in followed.refs):
        followed.poll()
    assert next(ref.erases for ref in followed.refs if ref.erases) == expected


@pytest.mark.parametrize(
    ("tombstones", "words"),
    [("erase", "it erases nothing and closes no task, as no item can have the id in its header id or key"),
     ("refuse", "kafka.tombstones: refuse")],
)  # fmt: skip
def test_a_message_without_a_value_that_erases_nothing_says_why(
    broker: Any, follow: Any, tombstones: str, words: str
) -> None:
    followed = follow(key_is_id=True, tombstones=tombstones)
    for key in (None, "", "k" * 300):
        send(broker, followed.topic, range(1), partition=0, key=key, value=None, headers={"class": "c"})
    while len(followed.problems()) < 3:
        followed.poll()
    found = [(problem.reason, problem.detail.partition(": ")[2]) for problem in followed.problems()]
    assert found == [("missing_image", f"a message without a value ({words})")] * 3


def test_a_control_message_closes_its_task_over_all_that_was_sent_before_it(broker: Any, follow: Any) -> None:
    followed = follow(range_messages=50)
    send(broker, followed.topic, range(400))
    for _ in range(2):  # its producer repeats itself
        send(broker, followed.topic, range(400, 401), 0, value=b"", headers={"task-complete": "animals"})
    send(broker, followed.topic, range(401, 409))
    followed.until(408)
    tasks = [at for at, ref in enumerate(followed.refs) if ref.format == "task"]
    before = {item.item_id for ref in followed.refs[: tasks[0]] for item in read(ref)[0]}
    assert before >= {f"i{n}" for n in range(400)}
    assert len({followed.refs[at].shard_id for at in tasks}) == 1
    marker = followed.refs[tasks[0]]
    assert (marker.name, marker.manifest.task, marker.manifest.shards) == (
        "animals.task.json",
        "animals",
        None,
    )
    assert read(marker) == ([], [])


def test_a_latest_start_is_remembered(broker: Any, follow: Any) -> None:
    followed = follow(start="latest")
    send(broker, followed.topic, range(4))
    while not followed.refs:
        followed.poll()
    followed.source.close()
    send(broker, followed.topic, range(4, 8))
    followed.source = followed.begin()
    assert sorted(item.item_id for item in followed.until(4)) == ["i4", "i5", "i6", "i7"]


def test_partitions_that_come_while_it_reads_are_read_from_their_start(
    broker: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "REFRESH_S", 0.1)
    listed = Brokers.partitions
    monkeypatch.setattr(Brokers, "partitions", lambda *asked: listed(*asked)[:2])
    followed = follow(start="latest")
    broker[1].list_topics(followed.topic, timeout=60)  # makes it
    while not followed.refs:
        followed.poll()
    for partition in range(4):
        send(broker, followed.topic, range(10 * partition, 10 * partition + 5), partition=partition)
    followed.until(10)
    monkeypatch.setattr(Brokers, "partitions", listed)
    found = followed.until(20)
    assert sorted(item.attributes["path"] for item in found) == [
        f"{followed.topic}/{partition}/{offset}" for partition in range(4) for offset in range(5)
    ]
    assert not followed.problems()


def test_a_topic_that_was_made_anew_is_reported_and_read_as_another(broker: Any, follow: Any) -> None:
    followed = follow()
    send(broker, followed.topic, range(8))
    followed.until(8)
    # As if far more had been read of a topic of this name before.
    stamps = [Stamp.of(ref.stamp) for ref in followed.refs]
    moved = [stamp._replace(start=stamp.end, end=stamp.end + 1000) for stamp in stamps if stamp]
    followed.refs = [replace(ref, stamp=str(s)) for ref, s in zip(followed.refs, moved, strict=True)]
    followed.die()
    with pytest.raises(TopicReplaced, match=r"source\.kafka\.generation: {\S+: 1}"):
        followed.until_it_fails()
    with pytest.raises(TopicReplaced):
        followed.poll()
    followed.options = replace(followed.options, generation=1)
    known = len(followed.refs)
    followed.die()
    deadline = time.monotonic() + 90
    while sum(len(read(ref)[0]) for ref in followed.refs[known:]) < 8:
        assert time.monotonic() < deadline
        followed.poll()
    assert all("-g0001-p" in ref.name for ref in followed.refs[known:])


def test_a_full_spool_stops_reading_and_says_so(broker: Any, follow: Any) -> None:
    followed = follow(range_messages=400, max_spool_bytes=1 << 20)
    send(broker, followed.topic, range(5000), partition=0, value=b"x" * 700)
    with pytest.raises(TransientReadError, match="max_spool_bytes"):
        followed.until_it_fails()
    known = len(followed.items())
    assert 0 < known < 5000
    for path in (followed.folder / "spool").iterdir():
        path.rename(followed.folder / path.name)
    followed.source._spool_due = 0.0
    assert sum(len(read(ref)[0]) for ref in _next(followed)) > 0


def _next(followed: Followed) -> list[ShardRef]:
    deadline = time.monotonic() + 90
    new: list[ShardRef] = []
    while not new:
        assert time.monotonic() < deadline
        new = followed.source.poll(set())
    return new


def test_a_disk_that_fails_delays_and_loses_nothing(
    broker: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = follow(range_messages=5)
    send(broker, followed.topic, range(40))
    put, failures = Spool.put, iter(range(6))

    def full(self: Spool, *arguments: Any) -> ShardRef:
        if next(failures, None) is not None:
            raise OSError(28, "No space left on device")
        return put(self, *arguments)

    monkeypatch.setattr(Spool, "put", full)
    with pytest.raises(TransientReadError, match="No space left"):
        followed.until_it_fails()
    followed.patiently(lambda: len(followed.items()) >= 40)
    assert sorted(item.item_id for item in followed.items()) == sorted(f"i{n}" for n in range(40))
    assert not followed.problems()


def test_published_offsets_follow_what_is_searchable(broker: Any, follow: Any) -> None:
    followed = follow(range_messages=5, group="lag")
    send(broker, followed.topic, range(20), partition=0)
    followed.until(20)
    waiting = [ref.stamp for ref in followed.refs if "10-15" in ref.stamp]
    followed.source._group._due = 0.0
    followed.source.settle(waiting, lambda _: True)
    reader = Consumer({"bootstrap.servers": broker[0], "group.id": "lag", "log_level": 0})
    deadline = time.monotonic() + 90
    while (seen := reader.committed([TopicPartition(followed.topic, 0)], timeout=60)[0].offset) != 10:
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
    reader.close()
    (figures,) = [f for f in followed.source.figures() if f.partition == 0]
    assert (figures.searchable, figures.lag) == (10, 10)


def test_options_that_would_break_exactly_once_are_refused() -> None:
    with pytest.raises(ValueError, match=r"options\.enable\.auto\.commit"):
        KafkaOptions(options={"enable.auto.commit": "true"})
    with pytest.raises(ValueError, match="no_such_option"):
        KafkaSource(["t"], KafkaOptions(options={"no_such_option": "1"}), Spool("nowhere", None))


def test_a_wrong_password_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (kafka_source, kafka_brokers):
        monkeypatch.setattr(room, "ASK_S", 1.0)
    options = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "stream",
        "sasl.password": "wrong",
    }
    with refusing_broker() as (servers, reported):
        asked = KafkaOptions(servers=servers, options=options)
        source = KafkaSource(["photos"], asked, Spool(str(tmp_path), None))
        for _ in range(2):
            with pytest.raises(
                TransientReadError, match=r"SASL authentication error: .*check source\.kafka\.op"
            ):
                source.poll(())
        source.close()
    assert set(reported) == {b"\0stream\0wrong"}
    assert len([line for line in caplog.messages if "SASL" in line]) == 1
    assert "wrong" not in caplog.text


def test_options_of_tls_reach_the_client(tmp_path: Path) -> None:
    options = {"security.protocol": "SSL", "ssl.ca.location": str(tmp_path / "none.pem")}
    with pytest.raises(ValueError, match=r"ssl\.ca\.location"):
        KafkaSource(["photos"], KafkaOptions(options=options), Spool(str(tmp_path), None))
