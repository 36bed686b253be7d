"""How a Kafka topic is read: a section of the configuration, and what the reader of its shards needs of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

OURS = frozenset(
    {
        *("bootstrap.servers", "group.id", "isolation.level", "auto.offset.reset"),
        *("enable.auto.commit", "enable.auto.offset.store", "enable.partition.eof"),
    }
)
"""Options of the client that reading each message once depends on: nobody else sets them."""

Generation = Annotated[int, Field(ge=0, le=9999)]


@dataclass(frozen=True)
class MessageFormat:
    """What a message says and where. It is kept with every shard, so that a shard is read the same way forever."""

    value: str = "image"
    """`image`: the bytes of an image file; `json` or `avro`: a record with the columns of a Parquet shard, its image
    in base64 (`avro`: bytes); or `module:function` of your own, importable wherever shards are read."""
    schemas: Mapping[str, str] = field(default_factory=dict)
    """Avro schemas as JSON, by the id that precedes a message (Confluent's registry); the key "" is of messages
    without an id."""
    class_header: str = "class"
    """Header that names the class, where the value does not."""
    id_header: str = "id"
    """Header that names the item; without one it is `topic/partition/offset` (`topic@generation/...`)."""
    key_is_id: bool = False
    """Take the message's key as the item's id: a later message of the key then replaces the item."""
    tombstones: Literal["refuse", "erase"] = "refuse"
    """What a message without a value does: it is quarantined, or erases the item of its id."""
    gaps: Literal["report", "expect"] = "report"
    """Quarantine a row for each run of offsets that a partition leaves out, or `expect` them between messages: a
    compacted topic has them, and one that is written in transactions. What retention deleted is always reported."""


@dataclass(frozen=True, kw_only=True)
class KafkaOptions(MessageFormat):
    """How the topics are read that `source.path` names, separated by commas, with `source.kind: kafka`."""

    servers: str = "127.0.0.1:9092"
    """Brokers to ask first, `host:port`, separated by commas."""
    options: Mapping[str, str] = field(default_factory=dict)
    """More options of librdkafka by its names: security.protocol, sasl.mechanism, sasl.username, ssl.ca.location ..."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where a topic is begun that this stream has not read yet."""
    generation: Generation | Mapping[str, Generation] = 0
    """`{topic: 1}` after that topic was deleted and made anew, `{topic: 2}` after the next time: it is then read from
    its start, and the others go on. A number is for all topics, those of a stream that has just one."""
    task_header: str = "task-complete"
    """Header of a control message: its value names the task that it closes over all that was sent before it."""
    group: str = ""
    """Consumer group under which the offsets that are searchable are published, for lag tools; empty: none."""
    range_messages: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Messages of a partition after which a shard is made of them."""
    range_bytes: Annotated[int, Field(ge=1 << 10, le=1 << 30)] = 16 << 20
    """Bytes of a partition's messages after which a shard is made of them."""
    range_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """Seconds after a partition's first message in which a shard is made of what came; at once after a pause. Each
    shard is a row of the ledger, at most one in this time: give a topic of many partitions more."""
    max_spool_bytes: Annotated[int, Field(ge=1 << 20)] = 20 << 30
    """Bytes of copied messages below `spool/` of the root. Above it nothing is read until tasks are learnt and
    `store.keep_pushed_h` has passed; the topic keeps what comes."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        if not re.fullmatch(r"image|json|avro|[\w.]+:\w+", self.value):
            raise ValueError(f"value {self.value!r}: expected image, json, avro or module:function")
        if (self.value == "avro") != bool(self.schemas):
            raise ValueError("schemas: expected with `value: avro`, and only there")
        if taken := sorted(OURS.intersection(self.options)):
            raise ValueError(
                f"options.{taken[0]} is not yours to set: that every message is read once depends on it"
            )

    def generation_of(self, topic: str) -> int:
        """Return the generation that is asked for of a topic."""
        return self.generation if isinstance(self.generation, int) else self.generation.get(topic, 0)

    @property
    def format(self) -> MessageFormat:
        """What a shard keeps of these options."""
        names = MessageFormat.__dataclass_fields__
        return MessageFormat(**{name: getattr(self, name) for name in names})

    @property
    def client(self) -> dict[str, Any]:
        """The options of the client that reads."""
        return {
            "client.id": "stream-odml",
            "queued.max.messages.kbytes": 32 << 10,
            "fetch.wait.max.ms": 100,
            **self.options,
            "bootstrap.servers": self.servers,
            "group.id": self.group or "stream-odml",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
