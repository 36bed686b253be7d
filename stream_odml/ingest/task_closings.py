"""When a control message of a log closes its task: once all that was sent before it is read, on every partition.

Protects: control messages act in the order in which they were sent, and none before what it closes over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from stream_odml.ingest.kafka_brokers import Brokers
from stream_odml.ingest.partition import Partition
from stream_odml.ingest.topic_position import Key

RETRY_S = 2.0


class TaskClosings:
    """Control messages at which partitions wait."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._targets: dict[Key, dict[Key, int]] = {}
        """For each control message that waits, how far the other partitions are to be read before it counts."""
        self._due = 0.0
        self.failing: dict[Key, str] = {}
        """Partitions of which it is not known where they end, and why: every control message waits for them."""

    def ready(self, parts: Mapping[Key, Partition], ends: Mapping[Key, int]) -> Key | None:
        """Return the partition whose control message is to be obeyed now: every other partition is at its end of
        when that was met, or waits at a control message of its own."""
        waits = {key: part for key, part in parts.items() if part.closes is not None}
        if not waits or not all(self._has_targets(key, parts, ends) for key in waits):
            return None
        key, _ = min(waits.items(), key=lambda one: (one[1].control_ms, one[0]))
        if any(parts[other].next < end for other, end in self._targets[key].items() if other not in waits):
            return None
        del self._targets[key]
        return key

    def _has_targets(self, key: Key, parts: Mapping[Key, Partition], ends: Mapping[Key, int]) -> bool:
        """Return whether it is known where the other partitions ended after this control message was met."""
        now = time.monotonic()
        if key in self._targets or now < self._due:
            return key in self._targets
        targets, self.failing = dict[Key, int](), dict[Key, str]()
        for other, mark in self._brokers.marks([other for other in parts if other != key]).items():
            if isinstance(mark, str):
                self.failing[other] = mark
                self._due = now + RETRY_S
            else:
                targets[other] = max(mark[1], ends.get(other, 0))
        if not self.failing:
            self._targets[key] = targets
        return not self.failing
