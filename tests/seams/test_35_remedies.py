"""Seam 35: what a person writes nearly right is understood, or the error names what he can write.

A version goes by any beginning that is its alone, wherever one is named; all mistakes of a configuration are told at
once, with likely keys; a missing token is asked for in the way of the command; credentials go by whole path names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from stream_odml.cli import main as cli
from stream_odml.config.service import ServiceOptions
from stream_odml.config.stream import ConfigError, load_config, parse_config
from stream_odml.ingest.boundary import BoundaryPolicy, WaitingShard
from stream_odml.pipeline.sources import read_options
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from stream_odml.store.errors import AmbiguousVersion, UnknownVersion
from stream_odml.store.store import Store
from stream_odml.store.versions import HeadMove, VersionTree
from tests.cluster.small_root import claim
from tests.seams.in_process import in_process
from tests.service.fake_backend import START, FakeBackend, version_row
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream

IDS = ["v0000-aaaa", "v0001-b111", "v0001-b222", "v0002-cccc"]


def tree(head: str) -> VersionTree:
    rows = {name: version_row(name, None, None, START, {}) for name in IDS}
    return VersionTree(versions=rows, moves=(HeadMove(head, "", 0, START),))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("v0000", IDS[0]), ("v0000-aaaa", IDS[0]), ("v0001-b1", IDS[1]), ("v0002-", IDS[3]), ("head", IDS[2])],
)
def test_a_version_goes_by_any_beginning_that_is_its_own(name: str, meant: str) -> None:
    assert tree(IDS[2]).named(name) == meant


@pytest.mark.parametrize("name", ["v", "v0001", "v0001-b", "v000"])
def test_a_beginning_of_several_names_them(name: str) -> None:
    with pytest.raises(AmbiguousVersion) as error:
        tree(IDS[0]).named(name)
    assert all(version in str(error.value) for version in IDS if version.startswith(name))


@pytest.mark.parametrize("name", ["", "w", "v0003", "aaaa", "V0000", "v0000-aaaaa"])
def test_what_no_version_begins_with_is_unknown(name: str) -> None:
    with pytest.raises(UnknownVersion):
        tree(IDS[0]).named(name)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TinyStream]:
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", "dog"])
    stream.stage()
    yield stream
    stream.close()


def test_rollback_and_diff_of_the_command_line_take_a_beginning(stream: TinyStream) -> None:
    root, first = stream.writer.tree.root or "", stream.head
    stream.writer.release()
    shell = CliRunner()
    said = shell.invoke(cli.app, ["rollback", stream.root, "v0000"])
    assert said.exit_code == 0
    assert said.output.startswith(f"head is {root}; task-0001, which it has not learnt, is learnt again")
    assert shell.invoke(cli.app, ["rollback", stream.root, "v0001"]).output == f"head is {first}\n"
    compared = shell.invoke(cli.app, ["versions", stream.root, "--diff", "v0000", "v0001", "--json"])
    assert (json.loads(compared.output)["from"], json.loads(compared.output)["to"]) == (root, first)
    wrong = shell.invoke(cli.app, ["rollback", stream.root, "v0"])
    assert wrong.exit_code == 1
    assert root in str(wrong.exception)
    assert first in str(wrong.exception)


def test_searches_take_a_beginning_as_version_and_min_version(stream: TinyStream) -> None:
    replica = Replica(stream.root, ServiceOptions(poll_s=0.02, wait_s=0.1))
    replica.start()
    item = next(iter(stream.images))
    ask = {"vector": stream.vectors([item])[0].tolist(), "k": 1}
    with LocalApi(create_app(replica, ServiceOptions())) as api:
        for more in (
            {"version": "v0001"},
            {"min_version": "v0001"},
            {"min_version": "head"},
            {"version": stream.head},
        ):
            answer = api.post("/v1/search", json={**ask, **more})
            assert answer.status_code == 200, answer.text
            assert answer.json()["hits"][0]["id"] == item
        for more in ({"version": "v0"}, {"min_version": "v0"}):
            answer = api.post("/v1/search", json={**ask, **more})
            assert (answer.status_code, answer.json()["error"]) == (422, "ambiguous_version")
            assert stream.head in answer.json()["detail"]
        assert api.post("/v1/search", json={**ask, "min_version": "v0002"}).status_code == 503
    replica.close()


def test_the_routes_of_versions_take_a_beginning() -> None:
    rows = [version_row(name, None, None, START, {}) for name in IDS]
    backend = FakeBackend(versions_list=rows)
    with LocalApi(create_app(backend, ServiceOptions())) as api:
        assert api.post("/v1/versions/v0002/rollback").status_code == 202
        assert backend.asked[-1] == ("rollback", IDS[3], "True")
        diff = api.get("/v1/versions/v0000/diff/head").json()
        assert (diff["from"], diff["to"]) == (IDS[0], IDS[3])
        for answer in (api.post("/v1/versions/v0001/rollback"), api.get("/v1/versions/v0000/diff/v0001")):
            assert answer.status_code == 422
            assert "v0001-b111, v0001-b222" in answer.json()["detail"]
        assert api.post("/v1/versions/v0009/rollback").status_code == 404


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        ({"learning": {"lr": 1}}, "learning.lr: unknown key; did you mean `learning_rate`?"),
        ({"learning": {"learningRate": 1}}, "`learning_rate`"),
        ({"learning": {"wd": 1}}, "`weight_decay`"),
        ({"learning": {"temp": 1}}, "`temperature`"),
        ({"learning": {"dim": 1}}, "`model.dim`"),
        ({"model": {"embedding_dim": 1}}, "`dim`"),
        ({"model": {"img-size": 1}}, "`image_size`"),
        ({"cluster": {"num_cpus": 1}}, "`cpus`"),
        ({"lr": 1}, "`learning.learning_rate`"),
        ({"backbone": "x"}, "`model.backbone`"),
    ],
)
def test_a_wrong_key_is_answered_with_a_likely_one(data: dict[str, Any], meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    assert meant in str(error.value)


@pytest.mark.parametrize("key", ["epochs", "momentum", "zzz", "arch"])
def test_a_key_that_is_like_none_is_answered_with_where_all_are(key: str) -> None:
    with pytest.raises(ConfigError, match=r"config --example") as error:
        parse_config({"learning": {key: 1}})
    assert "did you mean" not in str(error.value)


def test_no_mistake_hides_another() -> None:
    data = {
        "seed": -1,
        "sede": 2,
        "learning": {"lr": 1, "temperature": 0, "base_steps": -1, "virtual": "x", "classes_per_batch": 1},
        "boundary": {"images": -5, "imges": 3, "age_s": -1},
        "cluster": {"workers": 2, "min_workers": 9, "indexers": 0},
        "service": {"max_pixels": 4096, "prot": 1, "port": -1},
        "ingest": {"max_pixels": 5000, "tries": 0},
    }
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    said = str(error.value)
    for words in (
        "seed: Input", "sede:", "learning.lr", "temperature: 0", "base_steps: -1", "learning.virtual",
        "classes_per_batch", "boundary.images is -5", "boundary.imges", "boundary.age_s", "min_workers 9",
        "cluster.indexers", "service.max_pixels 4096", "service.prot", "service.port", "ingest.tries",
    ):  # fmt: skip
        assert words in said, words
    assert "16 mistake(s)" in said
    assert parse_config({"ingest": {"max_pixels": 5000}, "service": {"max_pixels": 5000}})


@pytest.mark.parametrize(
    "command",
    [
        ["query", "{image}", "--url", "http://127.0.0.1"],
        ["rollback", "{root}", "v0000-aa", "--url", "http://127.0.0.1"],
        ["forget", "{root}", "--class", "c1", "--url", "http://127.0.0.1"],
        ["relearn", "{root}", "task-0001", "--url", "http://127.0.0.1"],
    ],
)
def test_a_missing_token_is_asked_for_as_the_command_takes_it(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("sesame")
    (tmp_path / "i.png").write_bytes(b"\x89PNG")
    claim(tmp_path / "root").release()
    backend = FakeBackend()
    monkeypatch.setattr(backend, "stream", Store.id_of(str(tmp_path / "root")))
    served = create_app(backend, ServiceOptions(token_file=token))

    real = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **more: real(**{**more, "transport": in_process(served)}))
    monkeypatch.delenv("STREAM_ODML_TOKEN", raising=False)
    words = [word.format(image=tmp_path / "i.png", root=tmp_path / "root") for word in command]
    for given in ([], ["--token", "wrong"]):
        monkeypatch.setattr(sys, "argv", ["stream-odml", *words, *given])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        said = capsys.readouterr().err
        assert "--token" in said
        assert "STREAM_ODML_TOKEN" in said
        assert "Authorization" not in said


STORE, SOURCE = {"KEY": "of the store"}, {"KEY": "of the source"}


@pytest.mark.parametrize(
    ("root", "push", "uri", "options"),
    [
        ("s3://b/root", None, "s3://b/root/push/x.parquet", STORE),
        ("s3://b/root/", None, "s3://b/root/push/x.parquet", STORE),
        ("s3://b/root", None, "s3://b/root/push-old/x.parquet", SOURCE),
        ("s3://b/root", None, "s3://b/root/pushed.parquet", SOURCE),
        ("s3://b/root", None, "s3://b/root/push", SOURCE),
        ("s3://b/root", "s3://b/in/", "s3://b/in/x.parquet", STORE),
        ("s3://b/root", "s3://b/in", "s3://b/in2/x.parquet", SOURCE),
        ("s3://b/root", "s3://b/in", "s3://b/root/push/x.parquet", SOURCE),
        ("root", None, "{here}/root/push/x.parquet", STORE),
        ("root", None, "{here}/root/push2/x.parquet", SOURCE),
        ("root", None, "kafka://topic/push", SOURCE),
    ],
)
def test_the_store_s_credentials_go_to_the_push_folder_alone(
    root: str, push: str | None, uri: str, options: dict[str, str]
) -> None:
    config = parse_config(
        {
            "root": root,
            "store": {"options": STORE},
            "source": {"kind": "s3", "path": "b/other", "storage_options": SOURCE},
            "service": {"push_dir": push},
        }
    )
    assert read_options(config, uri.format(here=Path.cwd())) == options


def test_a_boundary_names_only_shards_that_are_awaited() -> None:
    waits = [
        WaitingShard("b-1", "b.parquet", {"oak": 3}, 0.0),
        WaitingShard(
            "t-1", "t.task.json", {}, 0.0, task="t", task_complete=True,
            task_shards=("a.parquet", "b.parquet", "c.parquet", "d.parquet"),
        ),
    ]  # fmt: skip
    settled = {"a.parquet": "task-0001", "d.parquet": "failed"}
    lines = [line for line in BoundaryPolicy().explain(waits, (), 0.0, settled) if "waits for" in line]
    assert len(lines) == 1
    assert "c.parquet" in lines[0]
    assert not any(name in lines[0] for name in ("a.parquet", "b.parquet", "d.parquet"))


TWICE = [
    "seed: 1\nlearning:\n  epochs_base: 3\nseed: 2\n",
    "learning:\n  dim: 1\n  batch: 2\n  dim: 1\n",
    'root: a\n"root": b\n',
    "{seed: 1, seed: 1}",
    "learning: {}\nroot: a\nlearning: {}\n",
]


@pytest.mark.parametrize("text", TWICE)
def test_a_key_that_comes_twice_is_reported_with_its_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"line \d+, column \d+: the key `\w+` comes twice"):
        load_config(path)


def test_a_key_that_overrides_a_merged_one_comes_once(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("store: {options: &a {x: '1'}}\nsource: {storage_options: {<<: *a, x: '2'}}\n")
    assert load_config(path).source.storage_options == {"x": "2"}
