"""Every request a client can make, as a value: how it is sent, how its answer is read, whether it may be repeated.

`Client` and `AsyncClient` have a method for each function here, of the same name, arguments and description.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from stream_odml.client import answers

T = TypeVar("T")
Image = bytes | bytearray | memoryview | str | Path
Vector = Sequence[float] | npt.NDArray[Any]


class Options(TypedDict, total=False):
    """What any search takes beside its subject; times without a zone are UTC."""

    k: int
    classes: Sequence[str]
    attributes: Mapping[str, str]
    after: datetime
    before: datetime
    group_by_class: bool
    group_size: int
    min_version: str
    min_seq: int


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. `repeatable`: sending it twice does no more than sending it once."""

    method: str
    path: str
    read: Callable[[Any], T]
    json: Any = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    is_json: bool = True
    """Whether `read` is given parsed JSON; else the bytes of the answer."""


@dataclass(frozen=True)
class NewImage:
    """One image to push; an `item_id` of your own makes it easy to find and to forget."""

    image: Image
    class_name: str
    item_id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    time: datetime | None = None


def search_image(image: Image, **options: Unpack[Options]) -> Call[answers.SearchResult]:
    """Return neighbours of an image: encoded bytes, or the path of a file."""
    body = {"image": _base64(image), **_options(options)}
    return Call("POST", "/v1/search", answers.search_result, body)


def search_vector(
    vector: Vector, version: str | None = None, **options: Unpack[Options]
) -> Call[answers.SearchResult]:
    """Return neighbours of a vector [d] made by `version`; an older one is mapped, an unknown one refused. ValueError
    for values that are not finite."""
    with np.errstate(over="ignore"):
        array = np.asarray(vector, np.float32)
    if not np.isfinite(array).all():
        raise ValueError("the vector holds NaN, infinity, or more than float32 can; embed the image again")
    body = {"vector": array.tolist(), **_options(options), **_given(version=version)}
    return Call("POST", "/v1/search", answers.search_result, body)


def search_batch(
    vectors: npt.NDArray[Any], version: str | None = None, **options: Unpack[Options]
) -> Call[list[answers.SearchResult]]:
    """Return neighbours of each row of `vectors` [n, d], all given by one version. ValueError for another shape."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    if rows.ndim != 2:
        raise ValueError(
            f"vectors have shape {rows.shape}; expected [n, d]: use search_vector for one vector"
        )
    body = {"vectors": _packed(rows, rows.shape[1]), **_options(options), **_given(version=version)}
    return Call("POST", "/v1/search/batch", answers.batch_result, body)


def embed(images: Sequence[Image]) -> Call[answers.Embedded]:
    """Return vectors of images, raw, and the version that made them: what `search_vector` takes later on."""
    body = {"images": [_base64(image) for image in images], "packed": True}
    return Call("POST", "/v1/embed", answers.embedded, body)


def map_between(start: str, end: str = "head") -> Call[bytes]:
    """Return the map from vectors of version `start` into the space of `end`, as the bytes of an npz file."""
    return Call("GET", "/v1/maps", bytes, params={"from": start, "to": end}, is_json=False)


def push(images: Sequence[NewImage], key: str | None = None) -> Call[answers.PushResult]:
    """Land images; returns once they are durable. The same `key` lands them once."""
    items = [
        {
            "image": _base64(new.image),
            "class": new.class_name,
            "attributes": dict(new.attributes),
            **_given(id=new.item_id, time=_iso(new.time)),
        }
        for new in images
    ]
    return _landing(items, key)


def push_vectors(
    vectors: npt.NDArray[Any],
    classes: Sequence[str | None],
    ids: Sequence[str] | None = None,
    attributes: Sequence[Mapping[str, str]] | None = None,
    key: str | None = None,
) -> Call[answers.PushResult]:
    """Land vectors [n, d] of a stream of vectors; a class may be None until `label` says it. Raises ValueError for
    another shape, or where there are not as many of the others."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    others = [part for part in (classes, ids, attributes) if part is not None]
    if rows.ndim != 2 or any(len(part) != len(rows) for part in others):
        raise ValueError(
            f"vectors of shape {rows.shape} with {[len(part) for part in others]} classes, ids and attributes; "
            "expected [n, d] and n of each"
        )
    items = [
        {
            "vector": _packed(row, len(row)),
            **_given(
                **{"class": classes[at]},
                id=None if ids is None else ids[at],
                attributes=None if attributes is None else dict(attributes[at]),
            ),
        }
        for at, row in enumerate(rows)
    ]
    return _landing(items, key)


def _landing(items: list[dict[str, Any]], key: str | None) -> Call[answers.PushResult]:
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}  # a fresh one makes even this safe to repeat
    return Call("POST", "/v1/items", answers.push_result, {"items": items}, headers=headers)


def label(item_id: str, class_name: str) -> Call[answers.PushResult]:
    """Say the class of an item; it is learnt with the next task."""
    return Call("PATCH", f"/v1/items/{_quoted(item_id)}", answers.push_result, {"class": class_name})


def get(item_id: str) -> Call[answers.StoredItem]:
    """Return one item."""
    return Call("GET", f"/v1/items/{_quoted(item_id)}", answers.stored_item)


def delete(item_id: str) -> Call[dict[str, Any]]:
    """Ask for an item to be forgotten."""
    return Call("DELETE", f"/v1/items/{_quoted(item_id)}", dict)


def delete_shard(shard_id: str) -> Call[dict[str, Any]]:
    """Ask for all items of a shard to be forgotten."""
    return Call("DELETE", f"/v1/shards/{_quoted(shard_id)}", dict)


def delete_class(name: str) -> Call[dict[str, Any]]:
    """Ask for a class to be forgotten."""
    return Call("DELETE", f"/v1/classes/{_quoted(name)}", dict)


def classes(
    since: datetime | None = None, limit: int = 1000, offset: int = 0
) -> Call[list[answers.ClassInfo]]:
    """Return classes, newest first; only those first seen after `since`."""
    params = {"limit": limit, "offset": offset, **_given(since=_iso(since))}
    return Call("GET", "/v1/classes", answers.classes, params=params)


def sample(limit: int = 1000, class_name: str | None = None) -> Call[answers.Sample]:
    """Return ids and classes of the gallery's items (of one class), a fixed sample of them where there are more than
    `limit`: from 3 to 20,000."""
    params: dict[str, str | int] = {"points": limit, **_given(**{"class": class_name})}
    return Call("GET", "/v1/projection", answers.sample, params=params)


def thumbnail(item_id: str) -> Call[bytes]:
    """Return a small encoded image of an item; ServiceError with status 404 where none is kept."""
    return Call("GET", f"/v1/items/{_quoted(item_id)}/thumbnail", bytes, is_json=False)


def versions() -> Call[answers.Versions]:
    """Return the tree of versions."""
    return Call("GET", "/v1/versions", answers.versions)


def diff(a: str, b: str) -> Call[dict[str, Any]]:
    """Return figures and classes that changed from version `a` to `b`."""
    return Call("GET", f"/v1/versions/{_quoted(a)}/diff/{_quoted(b)}", dict)


def rollback(version: str, relearn: bool = True) -> Call[dict[str, Any]]:
    """Ask for another version to be served. Not repeated: someone else may have moved the head on in between."""
    params = {"relearn": "true" if relearn else "false"}
    return Call("POST", f"/v1/versions/{_quoted(version)}/rollback", dict, params=params, repeatable=False)


def relearn(task: str, anyway: bool = False) -> Call[dict[str, Any]]:
    """Ask for a refused or skipped task to be learnt after all; `anyway`: published whatever the gate finds."""
    params = {"anyway": "true" if anyway else "false"}
    return Call("POST", f"/v1/tasks/{_quoted(task)}/relearn", dict, params=params)


def status() -> Call[dict[str, Any]]:
    """Return what is served, and how far behind the stream it is."""
    return Call("GET", "/v1/status", dict)


def metrics() -> Call[str]:
    """Return the metrics of the replica that answers, as Prometheus text."""
    return Call("GET", "/metrics", lambda content: content.decode(), is_json=False)


def _options(options: Options) -> dict[str, Any]:
    chosen = _given(attributes=dict(options.get("attributes", {})) or None, to=_iso(options.get("before")))
    if "classes" in options:
        given = options["classes"]
        chosen["class"] = [given] if isinstance(given, str) else list(given)
    if "after" in options:
        chosen["from"] = _iso(options["after"])
    return _given(
        k=options.get("k"),
        filter=chosen or None,
        group_by="class" if options.get("group_by_class") else None,
        group_size=options.get("group_size"),
        min_version=options.get("min_version"),
        min_seq=options.get("min_seq"),
    )


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _packed(rows: npt.NDArray[Any], dim: int) -> dict[str, Any]:
    return {"base64": base64.b64encode(rows.tobytes()).decode(), "dim": dim}


def _base64(image: Image) -> str:
    data = image if isinstance(image, bytes | bytearray | memoryview) else Path(image).read_bytes()
    return base64.b64encode(data).decode("ascii")


def _quoted(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no text; ids, classes, shards, tasks and versions are named by text")
    # "." and ".." would be taken for folders of the address, unless they are quoted themselves.
    try:
        return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="")
    except UnicodeEncodeError:
        raise ValueError(
            f"{name[:80]!a} holds a lone surrogate, which is no text; correct the name"
        ) from None


def _iso(time: datetime | None) -> str | None:
    if time is not None and not isinstance(time, date):
        raise TypeError(f"{time!r} is no time; give a datetime")
    return None if time is None else time.isoformat()
