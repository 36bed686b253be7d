"""What happens to one topic or partition of several: the others go on, and the trouble of that one is seen."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stream_odml.ingest import kafka_brokers, kafka_retention, kafka_source, task_closings
from stream_odml.ingest.kafka_brokers import Brokers
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.sources import WHOLE_TOPIC, LogFigures
from stream_odml.ingest.topic_position import TopicReplaced
from tests.ingest.followed import WAIT_S, Followed, send
from tests.ingest.kafka_broker import mock_broker, set_broker, set_leader

PLAIN = {"class": "c"}
"""Headers of a message without an id of its own."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_brokers, "ID_S", 0.05)  # the mock knows no ids of topics
    monkeypatch.setattr(kafka_retention, "ASK_S", 0.1)
    monkeypatch.setattr(kafka_brokers, "LOOK_S", 0.1)
    monkeypatch.setattr(kafka_source, "RETRY_S", 0.1)
    monkeypatch.setattr(task_closings, "RETRY_S", 0.1)


def troubles(followed: Followed) -> dict[str, str]:
    followed.source.settle([], lambda _: True)
    return {one.place: one.trouble for one in followed.source.figures() if one.trouble}


def lag(followed: Followed, partition: int) -> int:
    followed.source.settle([], lambda _: True)
    (found,) = [one.lag for one in followed.source.figures() if one.partition == partition]
    return int(found)


def test_a_topic_of_the_next_generation_is_read_from_its_start_and_no_other_is_read_again(
    broker: Any, follow: Any
) -> None:
    """With `start: latest` too, which is for topics that the stream has not met."""
    followed = follow("a", "b", start="latest")
    a, b = followed.topic.split(",")
    while len(followed.refs) < 8:
        followed.poll()  # notes where reading begins
    for topic in (a, b):
        send(broker, topic, range(4), 0, headers=PLAIN)
    first = {item.item_id for item in followed.until(8)}
    assert first == {f"{topic}/0/{n}" for topic in (a, b) for n in range(4)}
    followed.options = replace(followed.options, generation={a: 1})
    followed.die()
    send(broker, b, range(4, 6), 0, headers=PLAIN)
    new = [item.item_id for item in followed.until(14)][8:]
    followed.polls(2)
    assert sorted(new) == sorted([f"{b}/0/4", f"{b}/0/5", *(f"{a}@1/0/{n}" for n in range(4))])
    assert len(followed.items()) == 14
    # What was begun once goes on, also after the configuration forgets it.
    followed.options = replace(followed.options, generation=0)
    followed.die()
    send(broker, a, range(1), 0, headers=PLAIN)
    assert followed.until(15)[-1].item_id == f"{a}@1/0/4"


def test_one_number_for_several_topics_reads_none_of_them_again(broker: Any, follow: Any) -> None:
    followed = follow("a", "b")
    a, b = followed.topic.split(",")
    for topic in (a, b):
        send(broker, topic, range(2), 0)
    followed.until(4)
    followed.options = replace(followed.options, generation=1)
    followed.die()
    with pytest.raises(TopicReplaced, match=r"generation: {\S+-a: 1}: the others go on"):
        followed.until_it_fails()
    assert len(followed.items()) == 4
    assert set(troubles(followed)) == {a, b}


def test_a_topic_that_was_made_anew_stops_no_other(broker: Any, follow: Any) -> None:
    followed = follow("a", "b")
    a, b = followed.topic.split(",")
    for topic in (a, b):
        send(broker, topic, range(4), 0)
    followed.until(8)
    # As if far more of one had been read before.
    followed.refs = [
        replace(ref, stamp=ref.stamp.replace("0-4", "0-4000")) if f":{a}:" in ref.stamp else ref
        for ref in followed.refs
    ]
    followed.die()
    send(broker, b, range(4, 8), 0)
    said = ""
    while len(followed.items()) < 12 or not said:
        try:
            followed.poll()
        except TopicReplaced as error:
            said = str(error)
    assert f"{a}/0 ends at offset 4, but was read up to 4000" in said
    assert troubles(followed)[a] == said


def test_a_partition_whose_broker_is_away_is_named_while_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_brokers, "ASK_S", 0.5)
    with mock_broker(brokers=2) as broker:
        topic = "photos"
        broker[1].list_topics(topic, timeout=60)  # makes it
        for partition in range(4):
            set_leader(broker[1], topic, partition, 2 if partition == 1 else 1)
        followed = Followed(broker[0], tmp_path, topic)
        send(broker, topic, range(8))
        followed.until(8)
        set_broker(broker[1], 2, is_up=False)
        for n in itertools.count(8):  # the others are busy: nothing is raised
            send(broker, topic, range(n, n + 1), n % 2 * 2)
            followed.poll()
            if troubles(followed):
                break
        assert list(troubles(followed)) == [f"{topic}/1"]
        set_broker(broker[1], 2, is_up=True)
        send(broker, topic, range(n + 1, n + 2), 1)
        followed.patiently(lambda: len(followed.items()) == n + 2 and not troubles(followed))
        assert not followed.problems()
        followed.source.close()


def test_a_partition_that_cannot_be_begun_costs_its_topic_no_message_of_others(
    broker: Any, follow: Any, tmp_path: Path
) -> None:
    followed = follow("a", "b", start="latest")
    a, b = followed.topic.split(",")
    set_leader(broker[1], a, 2, -1)
    while len(followed.refs) < 4:
        followed.poll()
    send(broker, b, range(4))
    followed.until(4)
    assert list(troubles(followed)) == [a]
    assert f"{a}/2" in troubles(followed)[a]
    # No control message closes its task as long as a part of what came before it cannot be seen.
    send(broker, b, range(4, 5), 0, value=b"", headers={"task-complete": "animals"})
    followed.polls(3)
    assert not any(ref.format == "task" for ref in followed.refs)
    assert troubles(followed)[f"{b}/0"] == f"task animals is closed once {a} can be read"
    set_leader(broker[1], a, 2, 1)
    while not any(ref.format == "task" for ref in followed.refs):
        followed.poll()
    assert not troubles(followed)


def test_a_topic_that_is_not_there_stops_no_other(
    broker: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = follow("a", "b")
    a, b = followed.topic.split(",")
    listed = Brokers.partitions

    def denied(self: Brokers, topic: str, *timeout: float) -> Any:
        if topic == a:
            raise LookupError(f"topic {a}: Broker: Topic authorization failed")
        return listed(self, topic, *timeout)

    send(broker, b, range(4))
    with monkeypatch.context() as patched:
        patched.setattr(Brokers, "partitions", denied)
        followed.until(4)
        followed.source.settle([], lambda _: True)
        assert followed.source.figures()[0] == LogFigures(
            a, WHOLE_TOPIC, 0, 0, 0, f"topic {a}: Broker: Topic authorization failed"
        )
    send(broker, a, range(4, 8))
    followed.until(8)
    assert not troubles(followed)


def test_a_partition_of_which_nothing_comes_is_named(
    broker: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: its broker says that there is more, and the client gives none of it."""
    monkeypatch.setattr(kafka_source, "STALL_S", 0.3)
    followed = follow("a")
    send(broker, followed.topic, range(4))
    followed.until(4)
    assign = followed.source._consumer.assign

    class Deaf:
        def __getattr__(self, name: str) -> Any:
            return getattr(followed.source._brokers.consumer, name)

        def assign(self, places: Any) -> None:
            assign([place for place in places if place.partition != 3])

    followed.source._consumer, followed.source._is_stale = Deaf(), True
    place = f"{followed.topic}/3"
    deadline = time.monotonic() + WAIT_S
    for n in itertools.count(4, 4):
        send(broker, followed.topic, range(n, n + 4))
        followed.poll()
        if troubles(followed) or time.monotonic() > deadline:
            break
    assert list(troubles(followed)) == [place]
    assert "sends none of" in troubles(followed)[place]


def test_lag_grows_while_a_full_spool_stops_reading(broker: Any, follow: Any) -> None:
    # A range that is open when the spool fills is written by its time, not by the next poll of a slow machine.
    followed = follow("a", range_messages=400, range_s=3600, max_spool_bytes=1 << 20)
    send(broker, followed.topic, range(3000), partition=0, value=b"x" * 700)
    with pytest.raises(TransientReadError, match="max_spool_bytes"):
        followed.until_it_fails()
    before = lag(followed, 0)
    send(broker, followed.topic, range(3000, 4000), partition=0, value=b"x")
    read = sum(ref.size_bytes > 0 for ref in followed.refs)
    deadline = time.monotonic() + WAIT_S
    while lag(followed, 0) != before + 1000:
        assert time.monotonic() < deadline
        with pytest.raises(TransientReadError):
            followed.poll()
        time.sleep(0.01)
    assert sum(ref.size_bytes > 0 for ref in followed.refs) == read


def test_messages_that_are_deleted_soon_are_a_warning_before_they_are_a_hole(
    broker: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mock keeps some 5 MiB of a partition; it does not tell that it does."""
    monkeypatch.setattr(kafka_retention, "LOOK_S", 0.05)
    followed = follow("a", range_messages=400, max_spool_bytes=1 << 20)

    def at_risk(once: Callable[[LogFigures], bool]) -> tuple[int, str, int]:
        deadline = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(TransientReadError):
                followed.poll()
            followed.source.settle([], lambda _: True)
            (found,) = [one for one in followed.source.figures() if one.partition == 0]
            if once(found) or time.monotonic() > deadline:
                return found.at_risk, found.warning, found.lost
            time.sleep(0.05)

    send(broker, followed.topic, range(3000), partition=0, value=b"x" * 1000)
    with pytest.raises(TransientReadError, match="max_spool_bytes"):  # the driver is behind
        followed.until_it_fails()
    looks = itertools.count(1)
    # Where the partition begins has to be known before it deletes: a slow machine hears of it late.
    begins = followed.source._brokers.retention._first_lows
    assert at_risk(lambda _: next(looks) >= 10 and (followed.topic, 0) in begins) == (0, "", 0)
    send(broker, followed.topic, range(3000, 6000), partition=0, value=b"x" * 1000)
    risk, warning, lost = at_risk(lambda found: bool(found.warning))
    assert 0 < risk < 3000
    assert "not read and are deleted soon: let its topic keep them longer" in warning
    assert lost == 0
