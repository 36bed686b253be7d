"""An S3 prefix for real, against a local server (moto), also while it throttles."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_odml.ingest.landing import ShardExists, complete_task, land_items
from stream_odml.ingest.object_store import S3Source
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import BadShard, Reason, TransientReadError
from stream_odml.storage import reading as storage
from stream_odml.storage.reading import s3_filesystem
from tests.ingest.helpers import land_folder, some_items
from tests.ingest.pictures import picture
from tests.ingest.s3_server import NOT_CHECKED, SERVER, s3_options
from tests.ingest.throttling import Throttle
from tests.ingest.webdataset import land_tar

pytestmark = pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)


@pytest.fixture
def server(s3_port: int) -> int:
    return s3_port


@pytest.fixture
def inbox(bucket: str) -> str:
    return f"{bucket}/inbox"


def test_shards_of_every_kind(server: int, inbox: str, tmp_path: Path) -> None:
    s3 = s3_options(server)
    source = S3Source(inbox, s3)
    assert source.poll(set()) == []
    land_items(inbox, "p", some_items(300), s3)
    land_tar(inbox, "t", some_items(20), s3)
    (tmp_path / "zoo/cats").mkdir(parents=True)
    (tmp_path / "zoo/cats/a.png").write_bytes(picture())
    land_folder(inbox, tmp_path / "zoo", options=s3)
    complete_task(inbox, "spring", ["p.parquet"], s3)
    refs = {ref.name: ref for ref in source.poll(set())}
    assert {name: len(list(read_shard(ref, s3))) for name, ref in refs.items()} == {
        "p.parquet": 300, "t.tar": 20, "zoo": 1, "spring.task.json": 0,
    }  # fmt: skip
    assert refs["spring.task.json"].manifest is not None
    assert refs["spring.task.json"].manifest.shards == ("p.parquet",)
    assert all(isinstance(row, RawItem) for ref in refs.values() for row in read_shard(ref, s3))
    assert S3Source(inbox, s3).poll({ref.stamp for ref in refs.values()}) == []


def test_a_poll_over_known_shards_is_one_listing_and_opens_none(server: int, inbox: str) -> None:
    for number in range(7):
        land_items(inbox, f"s{number}", some_items(2, first=number), s3_options(server))
    with Throttle(server).serving() as counted:
        source = S3Source(inbox, s3_options(counted.port))
        known = {ref.stamp for ref in source.poll(set())}
        assert len(known) == 7
        before = counted.passed
        assert source.poll(known) == []
        assert counted.passed - before == 1


def test_landing_again_and_changing_under_way(server: int, inbox: str) -> None:
    s3 = s3_options(server)
    for _ in range(2):
        land_items(inbox, "p", some_items(3), s3)
    with pytest.raises(ShardExists):
        land_items(inbox, "p", some_items(4), s3)
    (ref,) = S3Source(inbox, s3).poll(set())
    filesystem, key = s3_filesystem(s3), f"{inbox[5:]}/p.parquet"
    with filesystem.open_input_stream(key) as there:
        data = there.read()
    rows = read_shard(ref, s3)
    next(rows)
    with filesystem.open_output_stream(key) as out:
        out.write(data[:-20] + b"\0" * 20)
    with pytest.raises(BadShard) as refusal:
        list(rows)
    assert refusal.value.reason is Reason.CHANGED_WHILE_READ
    filesystem.delete_file(key)
    with pytest.raises(BadShard) as refusal:
        list(read_shard(ref, s3))
    assert refusal.value.reason is Reason.MISSING_FILE


def test_throttling_is_waited_out_and_given_up_as_transient(
    server: int, inbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_items(inbox, "p", some_items(5), s3_options(server))
    with Throttle(server).serving() as throttle:
        s3 = s3_options(throttle.port)
        throttle.refuse(3)
        (ref,) = S3Source(inbox, s3).poll(set())
        assert throttle.refused["slow_down"] == 3
        throttle.refuse(2)
        assert len(list(read_shard(ref, s3))) == 5
        assert throttle.refused["slow_down"] == 5
    monkeypatch.setattr(storage, "RETRY_ATTEMPTS", 2)
    with pytest.raises(TransientReadError):
        S3Source(inbox, {**s3, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).poll(set())
