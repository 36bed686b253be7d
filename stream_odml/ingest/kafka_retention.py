"""What a topic will delete soon, of what is not read yet: said before it is lost.

Protects: a topic whose retention is shorter than the lag of its reader is a warning first, and a hole only then.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    OffsetSpec,
    ResourceType,
)

from stream_odml.ingest.topic_position import Key

RISK_AGE = 0.5
"""Part of `retention.ms` that a message may wait before it counts as one that is deleted soon."""
RISK_PART = 0.2
"""Oldest part of what a partition keeps, which counts as deleted soon once the partition deletes."""
LOOK_S, CONFIG_S = 5.0, 300.0
"""Between two looks at where partitions begin, and at the configuration of topics."""
ASK_S = 5.0


class Retention:
    """What is known of how long topics keep their messages. Asks in the background, and never waits."""

    def __init__(self) -> None:
        self._keeps_ms: dict[str, int] = {}
        """By topic, where its brokers say so and it deletes by age."""
        self._lows: dict[Key, int] = {}
        self._first_lows: dict[Key, int] = {}
        self._aged: dict[Key, int] = {}
        """Where messages begin that are younger than `RISK_AGE` of what their topic keeps."""
        self._pending: list[tuple[str, Any, Future[Any]]] = []
        self._look_due = self._config_due = 0.0

    @property
    def pending(self) -> list[Future[Any]]:
        """Return answers that are awaited."""
        return [answer for _, _, answer in self._pending]

    def at_risk(self, key: Key, wanted: int, end: int) -> int:
        """Return how many messages from the offset `wanted` on are deleted soon."""
        low = self._lows.get(key, 0)
        soon = self._aged.get(key, 0)
        if low > self._first_lows.get(key, low):  # it deletes, also where nobody says by which rule
            soon = max(soon, low + int((end - low) * RISK_PART))
        return max(0, min(soon, end) - wanted)

    def keeps(self, topic: str) -> str:
        """Return the rule by which a topic deletes, for people."""
        kept_ms = self._keeps_ms.get(topic)
        return f"retention.ms {kept_ms}, {kept_ms / 3.6e6:.3g} h" if kept_ms else "retention.bytes"

    def look(self, admin: AdminClient, keys: Collection[Key]) -> None:
        """Take what was answered, and ask again when it is time."""
        waiting = []
        for what, about, answer in self._pending:
            if not answer.done():
                waiting.append((what, about, answer))
            elif answer.exception() is None:  # what is not answered is not known, and asked again
                self._take(what, about, answer.result())
        self._pending = waiting
        now = time.monotonic()
        if waiting or not keys or now < self._look_due:
            return
        self._look_due = now + LOOK_S
        topics = sorted({topic for topic, _ in keys})
        first = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
        self._ask_offsets(admin, "low", dict.fromkeys(keys, first))
        since = {topic: int(time.time() * 1000 - RISK_AGE * kept) for topic, kept in self._keeps_ms.items()}
        young_from = {topic: OffsetSpec.for_timestamp(time_ms) for topic, time_ms in since.items()}
        self._ask_offsets(admin, "young", {key: young_from[key[0]] for key in keys if key[0] in young_from})
        if now >= self._config_due:
            self._config_due = now + CONFIG_S
            asked = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
            answers = admin.describe_configs(asked, request_timeout=ASK_S)
            self._pending += [("config", resource.name, answer) for resource, answer in answers.items()]

    def _ask_offsets(self, admin: AdminClient, what: str, asked: dict[Key, Any]) -> None:
        if asked:
            places = {TopicPartition(*key): spec for key, spec in asked.items()}
            answers = admin.list_offsets(places, request_timeout=ASK_S)
            self._pending += [
                (what, (place.topic, place.partition), answer) for place, answer in answers.items()
            ]

    def _take(self, what: str, about: Any, result: Any) -> None:
        if what == "config":
            values = {name: str(entry.value) for name, entry in result.items()}
            keeps = values.get("retention.ms", "")
            self._keeps_ms.pop(about, None)
            if "delete" in values.get("cleanup.policy", "delete") and keeps.isdigit():
                self._keeps_ms[about] = int(keeps)
        elif what == "low":
            self._lows[about] = int(result.offset)
            self._first_lows.setdefault(about, self._lows[about])
        else:  # below 0: no message is so young
            self._aged[about] = int(result.offset) if result.offset >= 0 else 2**63 - 1
