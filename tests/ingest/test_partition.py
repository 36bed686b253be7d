"""When the open range of a partition is closed: by age, and at once after a pause."""

from __future__ import annotations

import math

import pytest

from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.message_range import Message
from stream_odml.ingest.partition import QUIET_S, Partition


def take(partition: Partition, offset: int, now: float, at_end: bool = True) -> None:
    assert list(partition.take(Message(offset, 0, None, b"x", ()), now)) == []
    if at_end:
        partition.reached(offset + 1, now)


def test_what_comes_after_a_pause_waits_for_no_more_than_quiet() -> None:
    partition = Partition("t", 0, 0, KafkaOptions(range_s=1.0))
    take(partition, 0, 10.0)
    take(partition, 1, 10.05)
    assert partition.waits_s(10.05) == pytest.approx(QUIET_S)
    assert not partition.due(10.1)
    assert partition.due(10.2)
    assert [(one.about.start, one.about.end) for one in partition.close()] == [(0, 2)]


def test_a_steady_flow_is_one_range_in_range_s() -> None:
    partition, closed = Partition("t", 0, 0, KafkaOptions(range_s=1.0)), 0
    for tick in range(200):  # a message every 0.05 s, for ten seconds, always read to the end
        now = 10 + tick * 0.05
        take(partition, tick, now)
        if partition.due(now):
            closed += len(list(partition.close()))
    assert 8 <= closed <= 11


def test_a_backlog_waits_for_its_age() -> None:
    partition = Partition("t", 0, 0, KafkaOptions(range_s=1.0))
    take(partition, 0, 10.0, at_end=False)
    assert partition.waits_s(10.9) == math.inf
    assert not partition.due(10.9)
    assert partition.due(11.0)


def test_a_gap_behind_the_last_message_is_closed_too() -> None:
    """An aborted transaction at the end of a log, seen after all before it was closed, held the lag up for ever."""
    partition = Partition("t", 0, 0, KafkaOptions(range_s=1.0))
    take(partition, 0, 10.0)
    assert partition.due(10.2)
    assert [one.about.end for one in partition.close()] == [1]
    assert not partition.due(20.0), "nothing is open"
    partition.reached(4, 20.0)
    assert partition.due(21.0)
    assert [(one.about.start, one.about.end, one.messages) for one in partition.close()] == [(1, 4, ())]
    partition.reached(4, 30.0)
    assert not partition.due(40.0)
