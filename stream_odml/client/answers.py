"""What the service answers, as small frozen types for Python callers, and how each is read out of its JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter

Json = Mapping[str, Any]
Id = Annotated[str, Field(validation_alias="id")]
ClassName = Annotated[str, Field(validation_alias="class")]


@dataclass(frozen=True, slots=True)
class Hit:
    """One neighbour: cosine `score` in the space of the version that answered. A discriminant head adds a constant to
    those of classes that it has not learnt yet."""

    item_id: Id
    class_name: ClassName
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

    class_name: ClassName
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

    item_id: Id
    class_name: ClassName
    shard: str
    version: str
    time: datetime | None
    attributes: Mapping[str, str]
    has_thumbnail: Annotated[bool, Field(validation_alias="thumbnail")]
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


search_result = TypeAdapter(SearchResult).validate_python
push_result = TypeAdapter(PushResult).validate_python
stored_item = TypeAdapter(StoredItem).validate_python
versions = TypeAdapter(Versions).validate_python
_classes = TypeAdapter(list[ClassInfo]).validate_python


def batch_result(data: Json) -> list[SearchResult]:
    """Parse the answers of a batch, in its order; the whole reply names version and sequence once."""
    return [search_result({**data, **one}) for one in data["results"]]


def embedded(data: Json) -> Embedded:
    """Parse vectors, which come packed."""
    rows = np.frombuffer(base64.b64decode(data["vectors"]["base64"]), "<f4")
    return Embedded(data["version"], data["sequence"], rows.reshape(-1, data["dim"]).copy())


def classes(data: Json) -> list[ClassInfo]:
    """Return classes, newest first."""
    return _classes(data["classes"])


def sample(data: Json) -> Sample:
    """Return items of the gallery."""
    names = data["classes"]
    pairs = zip(data["ids"], data["class"], strict=True)
    return Sample(data["version"], tuple((item_id, names[code]) for item_id, code in pairs))
