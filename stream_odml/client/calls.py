"""Every request a client can make, as a value: how it is sent, how its answer is read, whether it may be repeated."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from stream_odml.client import answers

T = TypeVar("T")
Image = bytes | str | Path
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


def search_image(image: Image, options: Options) -> Call[answers.SearchResult]:
    """Return neighbours of an image: encoded bytes, or the path of a file."""
    body = {"image": _base64(image), **_options(options)}
    return Call("POST", "/v1/search", answers.search_result, body)


def search_vector(vector: Vector, version: str | None, options: Options) -> Call[answers.SearchResult]:
    """Return neighbours of a vector [d] made by `version` (default: the served one)."""
    body = {"vector": np.asarray(vector, np.float32).tolist(), **_options(options), **_given(version=version)}
    return Call("POST", "/v1/search", answers.search_result, body)


def search_batch(
    vectors: npt.NDArray[Any], version: str | None, options: Options
) -> Call[list[answers.SearchResult]]:
    """Return neighbours of each row of `vectors` [n, d]. Raises ValueError for another shape."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    if rows.ndim != 2:
        raise ValueError(
            f"vectors have shape {rows.shape}; expected [n, d]: use search_vector for one vector"
        )
    packed = {"base64": base64.b64encode(rows.tobytes()).decode(), "dim": rows.shape[1]}
    body = {"vectors": packed, **_options(options), **_given(version=version)}
    return Call("POST", "/v1/search/batch", answers.batch_result, body)


def embed(images: Sequence[Image]) -> Call[answers.Embedded]:
    """Return vectors of images, and the version that made them."""
    body = {"images": [_base64(image) for image in images], "packed": True}
    return Call("POST", "/v1/embed", answers.embedded, body)


def map_between(start: str, end: str) -> Call[bytes]:
    """Return the map between two versions, as an npz file."""
    return Call("GET", "/v1/maps", answers.plain_bytes, params={"from": start, "to": end}, is_json=False)


def push(images: Sequence[NewImage], key: str | None) -> Call[answers.PushResult]:
    """Land images; a fresh key makes even this safe to repeat."""
    items = [
        {
            "image": _base64(new.image),
            "class": new.class_name,
            "attributes": dict(new.attributes),
            **_given(id=new.item_id, time=_iso(new.time)),
        }
        for new in images
    ]
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    return Call("POST", "/v1/items", answers.push_result, {"items": items}, headers=headers)


def push_vectors(
    vectors: npt.NDArray[Any],
    classes: Sequence[str | None],
    ids: Sequence[str] | None,
    attributes: Sequence[Mapping[str, str]] | None,
    key: str | None,
) -> Call[answers.PushResult]:
    """Land vectors [n, d]. Raises ValueError for another shape, or where there are not as many of the others."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    others = [part for part in (classes, ids, attributes) if part is not None]
    if rows.ndim != 2 or any(len(part) != len(rows) for part in others):
        raise ValueError(
            f"vectors of shape {rows.shape} with {[len(part) for part in others]} classes, ids and attributes; "
            "expected [n, d] and n of each"
        )
    items = [
        {
            "vector": {"base64": base64.b64encode(row.tobytes()).decode(), "dim": len(row)},
            **_given(
                **{"class": classes[at]},
                id=None if ids is None else ids[at],
                attributes=None if attributes is None else dict(attributes[at]),
            ),
        }
        for at, row in enumerate(rows)
    ]
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    return Call("POST", "/v1/items", answers.push_result, {"items": items}, headers=headers)


def label(item_id: str, class_name: str) -> Call[answers.PushResult]:
    """Say the class of an item; to say it twice does no harm."""
    return Call("PATCH", f"/v1/items/{_quoted(item_id)}", answers.push_result, {"class": class_name})


def get(item_id: str) -> Call[answers.StoredItem]:
    """Return one item."""
    return Call("GET", f"/v1/items/{_quoted(item_id)}", answers.stored_item)


def delete(item_id: str) -> Call[dict[str, Any]]:
    """Forget an item."""
    return Call("DELETE", f"/v1/items/{_quoted(item_id)}", answers.plain)


def delete_shard(shard_id: str) -> Call[dict[str, Any]]:
    """Forget a whole shard."""
    return Call("DELETE", f"/v1/shards/{_quoted(shard_id)}", answers.plain)


def delete_class(name: str) -> Call[dict[str, Any]]:
    """Forget a class."""
    return Call("DELETE", f"/v1/classes/{_quoted(name)}", answers.plain)


def classes(since: datetime | None, limit: int, offset: int) -> Call[list[answers.ClassInfo]]:
    """Return classes, newest first."""
    params = {"limit": limit, "offset": offset, **_given(since=_iso(since))}
    return Call("GET", "/v1/classes", answers.classes, params=params)


def sample(limit: int, class_name: str | None) -> Call[answers.Sample]:
    """Return ids and classes of items."""
    params: dict[str, str | int] = {"points": limit, **_given(**{"class": class_name})}
    return Call("GET", "/v1/projection", answers.sample, params=params)


def thumbnail(item_id: str) -> Call[bytes]:
    """Return a small encoded image of an item."""
    return Call("GET", f"/v1/items/{_quoted(item_id)}/thumbnail", answers.plain_bytes, is_json=False)


def versions() -> Call[answers.Versions]:
    """Return the tree of versions."""
    return Call("GET", "/v1/versions", answers.versions)


def diff(a: str, b: str) -> Call[dict[str, Any]]:
    """Return what changed from `a` to `b`."""
    return Call("GET", f"/v1/versions/{_quoted(a)}/diff/{_quoted(b)}", answers.plain)


def rollback(version: str, relearn: bool) -> Call[dict[str, Any]]:
    """Move the head. Not repeated: someone else may have moved it on in between."""
    params = {"relearn": "true" if relearn else "false"}
    return Call(
        "POST", f"/v1/versions/{_quoted(version)}/rollback", answers.plain, params=params, repeatable=False
    )


def relearn(task: str, anyway: bool) -> Call[dict[str, Any]]:
    """Learn a refused or skipped task after all."""
    params = {"anyway": "true" if anyway else "false"}
    return Call("POST", f"/v1/tasks/{_quoted(task)}/relearn", answers.plain, params=params)


def status() -> Call[dict[str, Any]]:
    """Return what is served, and how far behind the stream it is."""
    return Call("GET", "/v1/status", answers.plain)


def _options(options: Options) -> dict[str, Any]:
    chosen = _given(attributes=dict(options.get("attributes", {})) or None, to=_iso(options.get("before")))
    if "classes" in options:
        chosen["class"] = list(options["classes"])
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


def _base64(image: Image) -> str:
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    return base64.b64encode(data).decode("ascii")


def _quoted(name: str) -> str:
    # "." and ".." would be taken for folders of the address, unless they are quoted themselves.
    try:
        return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="")
    except UnicodeEncodeError:
        raise ValueError(
            f"{name[:80]!a} holds a lone surrogate, which is no text; correct the name"
        ) from None


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
