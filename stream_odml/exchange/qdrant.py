"""Qdrant: galleries out of its collections, and ours in them, behind an alias.

Protects: a point is named by its item's id, so that what is written twice is there once; the alias that readers ask is
moved by one operation.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from stream_odml.exchange.errors import ExchangeError, SourceLost, library
from stream_odml.exchange.source import (
    ATTRIBUTES,
    CLASS,
    ID,
    VECTOR,
    Block,
    Names,
    as_lists,
    identity_of_place,
    rows_at_once,
    text_of,
)
from stream_odml.exchange.target import ROWS, Digests, Mark, Now, difference, is_table_of, summed, table_name
from stream_odml.exchange.urls import Place, check_folder, check_outside, place_of
from stream_odml.ingest.rawrow import NAMES
from stream_odml.ingest.served_vectors import origin_of
from stream_odml.wording import first_line, flat

EXAMPLE = "qdrant://HOST:6333/COLLECTION, or qdrant:///FOLDER/COLLECTION for a local one"
EXTRA = "qdrant"
KEY = "QDRANT_API_KEY"
_POINTS = 512
_SPACE = uuid.UUID("6f0e5d4e-93a6-4f1b-9a3a-5b2f1f7f5c11")


class _InWords:
    """A client of which each failure is an ExchangeError: its own are of httpx, grpc, SQLite and its own."""

    def __init__(self, client: Any, shown: str) -> None:
        self._client, self._shown = client, shown

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def asked(*args: Any, **more: Any) -> Any:
            try:
                return method(*args, **more)
            except Exception as error:
                raise ExchangeError(
                    f"{self._shown} does not do what is asked ({name}: {flat(str(error))[:300]}); "
                    "correct that, and run the same command again: it goes on"
                ) from error

        return asked


def connect(url: str) -> tuple[Any, Place]:
    """Return a client and what a URL names; the key of a server is in QDRANT_API_KEY. Raises ExchangeError."""
    qdrant = library("qdrant_client", EXTRA)
    place = place_of(url, EXAMPLE)
    try:
        if place.host:
            https = url.startswith(("qdrants://", "qdrant+https://"))
            client = qdrant.QdrantClient(
                host=place.host,
                port=place.port or 6333,
                https=https,
                api_key=os.environ.get(KEY),
                timeout=60,
                check_compatibility=False,  # it asks by itself, and warns where the next call says why
            )
            client.get_collections()
        else:
            client = qdrant.QdrantClient(path=place.folder)
    except Exception as error:  # of httpx, grpc, portalocker and its own
        raise ExchangeError(
            f"{place.shown} cannot be opened: {first_line(error)}; check host, port and {KEY}, and that no other "
            "process has a local folder open"
        ) from None
    return _InWords(client, place.shown), place


class QdrantSource:
    """A `GallerySource`: points of a collection in the order of their ids."""

    note = ""

    def __init__(self, url: str, names: Names) -> None:
        self._url = url
        check_folder(place_of(url, EXAMPLE))
        self._client, self._place = connect(url)
        self.name, self._names = self._place.shown, names
        try:
            self._look(names)
        except BaseException:  # of an interrupt too: an open client keeps a local folder from all others
            self._client.close()
            raise

    def _look(self, names: Names) -> None:
        """Find the vectors, their length and number. Raises ExchangeError for what is not there."""
        collection = self._place.name
        if not self._client.collection_exists(collection):
            known = ", ".join(one.name for one in self._client.get_collections().collections[:20])
            there = f"there are {known}: name one of them" if known else "that store holds none; name another"
            raise ExchangeError(f"{self.name}: there is no collection {collection!r}; {there}")
        params = self._client.get_collection(collection).config.params.vectors
        self._vector: str | None = None
        if isinstance(params, dict):
            self._vector = self._named(params, names.vector)
            params = params[self._vector]
        elif names.vector is not None:
            raise ExchangeError(f"{self.name} has one vector a point, without a name; leave --vector out")
        if params.multivector_config is not None:
            raise ExchangeError(
                f"{self.name} has several vectors a point, an item has one; "
                "write one of them, or their mean, to a named vector and name that with --vector"
            )
        self.dim = int(params.size)
        self.count = int(self._client.count(collection).count)
        if not self.count:
            raise ExchangeError(f"{self.name} has no points; there is nothing to adopt")
        first = self._client.scroll(collection, limit=100, with_payload=True)[0]
        fields = {key for point in first for key in (point.payload or {})}
        self.origin = origin_of(fields)
        for option, name in names.by_option:
            if option != "--vector" and first and name not in fields:
                raise ExchangeError(
                    f"{self.name} has no payload {name!r}; it has {', '.join(sorted(fields)[:20])}: "
                    f"name one of them with {option}"
                )
        class_name = names.class_name or next((name for name in NAMES["label"] if name in fields), None)
        # Points of a sync have ids of their own beside the one that it was given.
        item_id = names.id or ("id" if self.origin is not None and "id" in fields else None)
        self._names = names = replace(names, class_name=class_name, id=item_id)
        place = self._place
        self.identity = identity_of_place(place.host, place.port, place.folder, collection, names)

    def _named(self, vectors: dict[str, Any], wanted: str | None) -> str:
        """Return the name of the vectors to adopt. Raises ExchangeError where it is not said, or there is none."""
        if not vectors:
            raise ExchangeError(f"{self.name} has sparse vectors alone; name a collection with dense ones")
        name = next(iter(vectors)) if wanted is None and len(vectors) == 1 else wanted
        if name is None or name not in vectors:
            raise ExchangeError(
                f"{self.name} has vectors {', '.join(vectors)}; name the one to adopt with --vector"
            )
        return name

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """Yield blocks; the cursor is the id of the last point, which a scroll begins with."""
        size = min(rows_at_once(self.dim), 4096)
        offset, last = cursor, cursor
        while True:
            try:
                points, offset = self._client.scroll(
                    self._place.name,
                    limit=size,
                    offset=offset,
                    with_payload=True,
                    with_vectors=True if self._vector is None else [self._vector],
                )
            except ExchangeError as error:
                raise SourceLost(str(error)) from error
            fresh = [point for point in points if point.id != last]
            if fresh:
                last = fresh[-1].id
                yield Block(self._as_table(fresh), last)
            if offset is None:
                return

    def _as_table(self, points: list[Any]) -> pa.Table:
        names = self._names
        payloads = [point.payload or {} for point in points]
        vectors = [self._of(point) for point in points]
        ids = [
            str(point.id) if names.id is None else text_of(payload.get(names.id))
            for point, payload in zip(points, payloads, strict=True)
        ]
        fits = all(vector is not None and len(vector) == self.dim for vector in vectors)
        lists = as_lists(np.array(vectors, np.float32)) if fits else pa.array(vectors, pa.list_(pa.float32()))
        columns: dict[str, Any] = {VECTOR: lists, ID: pa.array(ids, pa.string())}
        if names.class_name:
            classes = [text_of(payload.get(names.class_name)) for payload in payloads]
            columns[CLASS] = pa.array(classes, pa.string())
        if names.attributes:
            columns[ATTRIBUTES] = [
                {name: text_of(payload.get(name)) for name in names.attributes} for payload in payloads
            ]
        return pa.table(columns)

    def _of(self, point: Any) -> Any:
        return point.vector if self._vector is None else (point.vector or {}).get(self._vector)


class QdrantTarget:
    """A `SyncTarget`: a collection for each space, compared by `Dot`, and an alias of the name that readers ask."""

    def __init__(self, url: str) -> None:
        place = place_of(url, EXAMPLE)
        if not place.host:
            check_outside(place.folder)
        self._client, self._place = connect(url)
        self.name, self._alias = self._place.shown, self._place.name
        self._models = library("qdrant_client.models", EXTRA)
        self._marks = f"{self._alias}__marks"
        if any(one.name == self._alias for one in self._client.get_collections().collections):
            raise ExchangeError(
                f"{self.name}: {self._alias!r} is a collection that sync did not make; "
                "name another, it becomes an alias"
            )
        if (live := self._live) is not None and not is_table_of(self._alias, live):
            raise ExchangeError(
                f"{self.name}: {self._alias!r} is an alias of {live!r}, which sync did not make; name another"
            )

    @property
    def _live(self) -> str | None:
        """The collection that readers see."""
        aliases = self._client.get_aliases().aliases
        return next((one.collection_name for one in aliases if one.alias_name == self._alias), None)

    def mark(self) -> Mark | None:
        live = self._live
        if live is None or not self._client.collection_exists(self._marks):
            return None
        found = self._client.retrieve(self._marks, [self._point(live)], with_payload=True)
        return Mark(**found[0].payload) if found else None

    def prepare(self, space: str, dim: int) -> None:
        m = self._models
        for name, size in ((self._table(space), dim), (self._marks, 1)):
            if not self._client.collection_exists(name):
                vectors = m.VectorParams(size=size, distance=m.Distance.DOT)
                self._client.create_collection(name, vectors_config=vectors)
        if self._place.host:  # a local folder has no index of payloads; a server may refuse to filter without
            self._client.create_payload_index(self._table(space), "bucket", m.PayloadSchemaType.INTEGER)

    def digests(self, space: str) -> Digests:
        points = list(self._points(space, None, ["bucket", "digest"]))
        buckets = np.array([point.payload["bucket"] for point in points], np.int64)
        return summed(buckets, np.array([point.payload["digest"] for point in points], np.int64))

    def count(self, space: str) -> int:
        table = self._table(space)
        return int(self._client.count(table).count) if self._client.collection_exists(table) else 0

    def replace(self, space: str, buckets: Sequence[int], rows: pa.Table, *, now: Now = "noted") -> None:
        m = self._models
        held = () if now == "nothing" else self._points(space, buckets, ["id", "digest"])
        there = {point.payload["id"]: point.payload["digest"] for point in held}
        new, gone = difference(rows, there, damaged=now == "damaged")
        for start in range(0, len(new), _POINTS):
            points = [
                m.PointStruct(id=self._point(row["id"]), vector=row.pop("vector"), payload=row)
                for row in new.slice(start, _POINTS).to_pylist()
            ]
            self._client.upsert(self._table(space), points, wait=True)
        if gone:
            ids = m.PointIdsList(points=[self._point(one) for one in gone])
            self._client.delete(self._table(space), ids, wait=True)

    def switch(self, mark: Mark) -> None:
        m, table = self._models, self._table(mark.space)
        noted = m.PointStruct(id=self._point(table), vector=[1.0], payload=mark.to_dict())
        self._client.upsert(self._marks, [noted], wait=True)
        live = self._live
        if live == table:
            return
        changes: list[Any] = []
        if live is not None:
            changes.append(m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=self._alias)))
        changes.append(
            m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name=table, alias_name=self._alias))
        )
        self._client.update_collection_aliases(change_aliases_operations=changes)

    def drop_others(self, space: str) -> None:
        for one in self._client.get_collections().collections:
            if is_table_of(self._alias, one.name) and one.name != self._table(space):
                self._client.delete_collection(one.name)

    def read(self, space: str) -> Iterator[pa.Table]:
        points = self._points(space, None, True, with_vectors=True)
        while held := list(islice(points, _POINTS)):
            yield _rows(held)

    def close(self) -> None:
        self._client.close()

    def _points(
        self, space: str, buckets: Sequence[int] | None, payload: Any, with_vectors: bool = False
    ) -> Iterator[Any]:
        m, offset = self._models, None
        only = None
        if buckets is not None:
            only = m.Filter(must=[m.FieldCondition(key="bucket", match=m.MatchAny(any=list(buckets)))])
        while True:
            points, offset = self._client.scroll(
                self._table(space),
                scroll_filter=only,
                limit=4 * _POINTS,
                offset=offset,
                with_payload=payload,
                with_vectors=with_vectors,
            )
            yield from points
            if offset is None:
                return

    def _table(self, space: str) -> str:
        return table_name(self._alias, space)

    @staticmethod
    def _point(name: str) -> str:
        return str(uuid.uuid5(_SPACE, name))


def _rows(points: list[Any]) -> pa.Table:
    table = pa.table(
        [pa.array([point.payload[field.name] for point in points], field.type) for field in ROWS], schema=ROWS
    )
    return table.append_column("vector", as_lists(np.array([point.vector for point in points], np.float32)))
