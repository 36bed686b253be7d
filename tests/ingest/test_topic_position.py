"""Which topic of a name was read, and how far, as the ledger's stamps say."""

from __future__ import annotations

from typing import Any

import pytest

from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.topic_position import NO_ID, Stamp, TopicPosition, TopicReplaced, stamps_of

OLD = Stamp("a", 0, "id-0", 0, 0, 40)
NEW = Stamp("a", 1, "id-1", 0, 0, 7)
OTHER = Stamp("b", 0, "id-b", 3, 5, 9)


def position(topic: str, *stamps: Stamp, generation: Any = 0, topics: str = "ab") -> TopicPosition:
    return TopicPosition.of(topic, stamps, KafkaOptions(generation=generation), topics)


def test_the_ends_of_what_was_read() -> None:
    found = position("a", OLD, Stamp("a", 0, "", 1, 3, 3), Stamp("a", 0, "id-0", 0, 40, 50), OTHER)
    assert found == TopicPosition(0, "id-0", {0: 50, 1: 3}, True)
    assert position("c", OLD) == TopicPosition(0, "", {}, False)


def test_a_generation_begins_its_topic_again_and_no_other() -> None:
    raised = {"a": 1}
    assert position("a", OLD, OTHER, generation=raised) == TopicPosition(1, "", {}, True)
    assert position("b", OLD, OTHER, generation=raised) == TopicPosition(0, "id-b", {3: 9}, True)
    assert position("a", OLD, NEW, generation=raised) == TopicPosition(1, "id-1", {0: 7}, True)


@pytest.mark.parametrize("generation", [0, 1, {"a": 1}, {"b": 1}])
def test_what_was_begun_goes_on_whatever_names_it_no_more(generation: Any) -> None:
    assert position("a", OLD, NEW, generation=generation) == TopicPosition(1, "id-1", {0: 7}, True)


def test_a_number_is_for_a_stream_of_one_topic() -> None:
    assert position("a", OLD, generation=1, topics="a") == TopicPosition(1, "", {}, True)
    assert position("a", generation=1).generation == 1  # none of them was read before
    with pytest.raises(TopicReplaced, match=r"generation: {b: 1}"):
        position("b", OLD, OTHER, generation=1)


def test_another_id_is_another_topic() -> None:
    found = position("a", OLD)
    for same in ("id-0", ""):  # a broker that tells none says nothing about it
        found.check_id("a", same)
    with pytest.raises(TopicReplaced, match=r"its id is id-9, id-0 was read; .*generation: {a: 1}"):
        found.check_id("a", "id-9")
    position("a", Stamp("a", 0, NO_ID, 0, 0, 1)).check_id("a", "id-9")


def test_stamps_are_read_back() -> None:
    assert list(stamps_of([str(OLD), "photos/1.parquet", str(OTHER)], ["a"])) == [OLD]
