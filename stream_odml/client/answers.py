"""What the service answers, as small frozen types for Python callers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """One neighbour: cosine `score` in the space of the version that answered. A discriminant head adds a constant to
    those of classes that it has not learnt yet."""

    item_id: str
    class_name: str
    score: float
    version: str
    time: datetime | None
    attributes: Mapping[str, str]
    """`path`: of its file within what was landed, unless its producer gave an attribute of this name."""
    shard: str = ""
    row: int = -1
    """Its row in the shard."""


@dataclass(frozen=True, slots=True)
class Group:
    """The best hits of one class."""

    class_name: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Answer to one query, by model `version` at `sequence` of the store; `groups` if asked by class."""

    version: str
    sequence: int
    hits: tuple[Hit, ...] = ()
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedded:
    """Raw vectors float32 [n, d] of images, in their order, made by model `version`."""

    version: str
    sequence: int
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PushResult:
    """The images are durable as `shard` of `stream`; `ids` in the order they were given."""

    shard: str
    ids: tuple[str, ...]
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item of the gallery."""

    item_id: str
    class_name: str
    shard: str
    version: str
    time: datetime | None
    attributes: Mapping[str, str]
    has_thumbnail: bool
    row: int = -1
    """Its row in the shard."""


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class; `learnt` once a model version was trained on it."""

    name: str
    count: int
    first_seen: datetime | None
    sample: str
    learnt: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """(id, class) of items of the gallery, as version `version` serves it."""

    version: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One committed model version."""

    id: str
    parent: str | None
    task: str | None
    committed: datetime | None
    retired: bool
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Versions:
    """The tree of versions in order of commit."""

    head: str
    sequence: int
    versions: tuple[VersionInfo, ...]


def moment(text: str | None) -> datetime | None:
    """Parse ISO 8601 text of the service."""
    return None if text is None else datetime.fromisoformat(text)


def hit(data: Json) -> Hit:
    """Parse one neighbour."""
    return Hit(score=data["score"], shard=data.get("shard", ""), **_of_item(data))


def _of_item(data: Json) -> dict[str, Any]:
    return {
        "item_id": data["id"],
        "class_name": data["class"],
        "version": data["version"],
        "time": moment(data["time"]),
        "attributes": dict(data["attributes"]),
        "row": data.get("row", -1),
    }


def search_result(data: Json, head: Json | None = None) -> SearchResult:
    """Parse one answer; in a batch, `head` is the whole reply, which names version and sequence once."""
    head = data if head is None else head
    groups = tuple(Group(group["class"], tuple(map(hit, group["hits"]))) for group in data.get("groups", ()))
    return SearchResult(head["version"], head["sequence"], tuple(map(hit, data.get("hits", ()))), groups)


def batch_result(data: Json) -> list[SearchResult]:
    """Parse the answers of a batch, in its order."""
    return [search_result(one, data) for one in data["results"]]


def embedded(data: Json) -> Embedded:
    """Parse vectors, which come packed."""
    rows = np.frombuffer(base64.b64decode(data["vectors"]["base64"]), "<f4")
    return Embedded(data["version"], data["sequence"], rows.reshape(-1, data["dim"]).copy())


def push_result(data: Json) -> PushResult:
    """Parse the receipt of a push."""
    return PushResult(data["shard"], tuple(data["ids"]), data.get("stream"))


def stored_item(data: Json) -> StoredItem:
    """Return one item."""
    return StoredItem(shard=data["shard"], has_thumbnail=data["thumbnail"], **_of_item(data))


def classes(data: Json) -> list[ClassInfo]:
    """Return classes, newest first."""
    return [
        ClassInfo(row["name"], row["count"], moment(row["first_seen"]), row["sample"], row["learnt"])
        for row in data["classes"]
    ]


def sample(data: Json) -> Sample:
    """Return items of the gallery."""
    names = data["classes"]
    pairs = zip(data["ids"], data["class"], strict=True)
    return Sample(data["version"], tuple((item_id, names[code]) for item_id, code in pairs))


def versions(data: Json) -> Versions:
    """Return the tree of versions."""
    rows = tuple(
        VersionInfo(
            row["id"],
            row["parent"],
            row["task"],
            moment(row["committed"]),
            row["retired"],
            dict(row["metrics"]),
        )
        for row in data["versions"]
    )
    return Versions(data["head"], data["sequence"], rows)
