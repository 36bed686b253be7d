"""Seam 10: a name in an object store has one content, whichever producers race for it.

Against a local S3 server (moto). A producer whose call returned finds its own bytes under the name for good; every
other one was refused, before it wrote over anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stream_odml.cli.ingest import land_path
from stream_odml.config.stream import parse_config
from stream_odml.ingest.landing import ShardExists, complete_task, land_items
from stream_odml.ingest.object_store import S3Source
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.pipeline.sources import open_sources, read_options
from stream_odml.storage import publish
from stream_odml.storage.publish import CLAIMS, claim
from stream_odml.storage.reading import s3_filesystem, s3_path
from stream_odml.store.layout import strangers
from stream_odml.store.store import Store
from tests.ingest.helpers import land_folder, some_items
from tests.ingest.s3_server import NOT_CHECKED, SERVER, s3_options
from tests.ingest.webdataset import land_tar
from tests.seams.folders import write

pytestmark = pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)
PRODUCERS = 6
Land = Callable[[str, int, dict[str, str]], str]


@pytest.fixture
def s3(s3_port: int) -> dict[str, str]:
    return s3_options(s3_port)


@pytest.fixture
def inbox(bucket: str) -> str:
    return f"{bucket}/inbox"


@pytest.fixture(params=["items", "tar", "folder"])
def land(request: pytest.FixtureRequest, tmp_path: Path) -> Land:
    """Land the producer's own four images under the one name."""

    def folder(inbox: str, number: int, s3: dict[str, str]) -> str:
        path = write(
            tmp_path / f"{number}/shard", "cats/a.png", "cats/b.png", "dogs/a.png", first=10 * number
        )
        return land_folder(inbox, path, options=s3)

    ways: dict[str, Land] = {
        "items": lambda inbox, number, s3: land_items(inbox, "shard", some_items(4, first=10 * number), s3),
        "tar": lambda inbox, number, s3: land_tar(inbox, "shard", some_items(4, first=10 * number), s3),
        "folder": folder,
    }
    return ways[request.param]


def images(inbox: str, s3: dict[str, str]) -> list[bytes]:
    (ref,) = S3Source(inbox, s3).poll(set())
    return [row.image for row in read_shard(ref, s3) if isinstance(row, RawItem)]


def test_of_racing_producers_one_lands_and_the_others_are_refused(
    s3: dict[str, str], inbox: str, land: Land
) -> None:
    barrier = threading.Barrier(PRODUCERS)
    landed: list[int] = []
    refused: list[str] = []

    def produce(number: int) -> None:
        barrier.wait()
        try:
            land(inbox, number, s3)
        except ShardExists as error:
            refused.append(str(error))
        else:
            landed.append(number)

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(PRODUCERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(landed) == 1
    assert len(refused) == PRODUCERS - 1
    assert all("exists with other content" in text for text in refused)
    there = images(inbox, s3)
    land(inbox, landed[0], s3)  # repeating is harmless
    assert images(inbox, s3) == there
    expected = {item.image for item in some_items(4, first=10 * landed[0])}
    assert set(there) & expected or len(there) == 3
    for number in set(range(PRODUCERS)) - set(landed):
        with pytest.raises(ShardExists):
            land(inbox, number, s3)
    assert images(inbox, s3) == there


def test_who_comes_between_the_look_and_the_write_is_not_written_over(
    s3: dict[str, str], inbox: str, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one has looked, and found the name free; then the other lands, whole."""

    def late(*args: object) -> None:
        monkeypatch.undo()
        land(inbox, 2, s3)
        claim(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(publish, "claim", late)
    with pytest.raises(ShardExists, match="exists with other content"):
        land(inbox, 1, s3)
    there = images(inbox, s3)
    land(inbox, 2, s3)
    assert images(inbox, s3) == there
    assert len(there) in (3, 4)


def test_a_producer_that_was_killed_after_its_claim_may_repeat_itself(
    s3: dict[str, str], inbox: str, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        claim(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "claim", killed)
    with pytest.raises(KeyboardInterrupt):
        land(inbox, 1, s3)
    monkeypatch.undo()
    assert S3Source(inbox, s3).poll(set()) == []
    with pytest.raises(ShardExists):
        land(inbox, 2, s3)
    land(inbox, 1, s3)
    assert len(images(inbox, s3)) in (3, 4)


def test_a_folder_does_not_take_the_name_of_another(s3: dict[str, str], inbox: str, tmp_path: Path) -> None:
    land_folder(inbox, write(tmp_path / "a/zoo", "cats/a.png", "cats/only-here.png"), options=s3)
    before = images(inbox, s3)
    with pytest.raises(ShardExists, match="exists with other content"):
        land_folder(inbox, write(tmp_path / "b/zoo", "cats/a.png", first=5), options=s3)
    assert images(inbox, s3) == before


def test_what_another_tool_put_there_is_not_written_over(s3: dict[str, str], inbox: str) -> None:
    with s3_filesystem(s3).open_output_stream(f"{s3_path(inbox)}/shard.parquet") as out:
        out.write(b"copied by hand")
    with pytest.raises(ShardExists):
        land_items(inbox, "shard", some_items(2), s3)
    with s3_filesystem(s3).open_input_stream(f"{s3_path(inbox)}/shard.parquet") as there:
        assert there.read() == b"copied by hand"


def test_a_task_is_completed_once(s3: dict[str, str], inbox: str) -> None:
    complete_task(inbox, "base", ["a.parquet"], s3)
    complete_task(inbox, "base", ["a.parquet"], s3)
    with pytest.raises(ShardExists, match="completed before"):
        complete_task(inbox, "base", ["b.parquet"], s3)


def test_claims_are_no_shards_and_a_store_that_is_away_is_no_refusal(s3: dict[str, str], inbox: str) -> None:
    land_items(inbox, "shard", some_items(2), s3)
    listed = s3_filesystem(s3).get_file_info(f"{s3_path(inbox)}/{CLAIMS}/shard.parquet")
    assert listed.is_file
    assert [ref.name for ref in S3Source(inbox, s3).poll(set())] == ["shard.parquet"]
    with pytest.raises(OSError, match="cannot be written now"):
        claim("s3://no-such-bucket/inbox", "x", "0" * 64, s3)


def test_credentials_of_the_shared_file_reach_the_claim(
    s3: dict[str, str], inbox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = test\naws_secret_access_key = te%st\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    options = {name: value for name, value in s3.items() if "KEY" not in name}
    assert land_items(inbox, "shard", some_items(2), options) == f"{inbox}/shard.parquet"


def test_a_stream_whose_root_is_there_has_its_inbox_there(
    s3: dict[str, str], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `init --root s3://...` writes it, and with the names that the page of object stores asks for alone."""
    named = {name: value for name, value in s3.items() if name != "AWS_ALLOW_HTTP"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    root = f"{bucket}/my photos"
    Store.create(root, 4)
    photos = write(tmp_path / "photos", "cats/a.png", "dogs/b.png")
    list(land_path(photos, f"{root}/inbox", 10, None))
    assert [ref.name for ref in open_sources(parse_config({"root": root}))[0].poll(set())] == ["photos"]
    for name in named:
        monkeypatch.delenv(name)
    config = parse_config({"root": root, "store": {"options": named}})
    (ref,) = open_sources(config)[0].poll(set())
    assert read_options(config, ref.uri) == named
    assert [path.name for path in tmp_path.iterdir()] == ["photos"], "no folder of that name is made here"
    for wrong in ("push", "gallery/x", "."):
        with pytest.raises(ValueError, match=r"source\.path"):
            open_sources(parse_config({"root": root, "source": {"path": wrong}}))
    for place in (f"{root}/gallery", f"{root}/push/x".removeprefix("s3://"), root, bucket):
        with pytest.raises(ValueError, match=r"source\.path .* name a place of its own"):
            open_sources(parse_config({"root": root, "source": {"kind": "s3", "path": place}}))
    with pytest.raises(ValueError, match="write `kind: s3`"):
        parse_config({"root": root, "source": {"path": f"{root}/inbox"}})


def test_a_bucket_that_is_not_there_is_no_empty_inbox(s3: dict[str, str], bucket: str) -> None:
    assert S3Source(f"{bucket}/nothing-yet", s3).poll(set()) == []
    with pytest.raises(TransientReadError, match="there is no such bucket"):
        S3Source("s3://no-such-bucket/inbox", s3).poll(set())


def test_the_note_of_a_folder_is_no_stranger_in_a_root(s3: dict[str, str], bucket: str) -> None:
    store = Store.create(f"{bucket}/root", 4, s3)
    s3_filesystem(s3).create_dir(f"{s3_path(bucket)}/root")
    assert strangers(store.files) == []


def test_images_do_not_land_in_a_root_in_place_of_its_inbox(
    s3: dict[str, str], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    Store.create(f"{bucket}/root", 4, s3)
    photos = write(tmp_path / "photos", "cats/a.png", "dogs/b.png")
    with pytest.raises(ValueError, match="is a stream root, where nobody looks for shards"):
        list(land_path(photos, f"{bucket}/root", 10, None))
    assert list(land_path(photos, f"{bucket}/root/inbox", 10, None)) == [f"landed {bucket}/root/inbox/photos"]
