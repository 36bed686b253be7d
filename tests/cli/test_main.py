"""The command line on a stream root at rest: every command of the README that needs no running stream."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stream_odml.cli import main as cli
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.shard import ShardRef
from stream_odml.store.store import Store
from tests.cluster.small_root import artifacts, claim, index, shard

Run = Callable[..., str]
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `stream-odml ARGUMENTS` in this process; its output, or its errors where it must end with a code."""

    def call(*arguments: str | Path, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["stream-odml", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        assert (end.value.code or 0) == code, out + err
        return out if code == 0 else err

    return call


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two indexed shards, one of them learnt, one that waits to be indexed."""
    writer = claim(tmp_path / "root")
    refs: list[ShardRef] = [shard("a"), shard("b"), shard("c")]
    writer.record_landed(refs)
    index(writer, refs[0], {"oak": 3, "elm": 3})
    index(writer, refs[1], {"ash": 3})
    writer.close_task("task-0001", [refs[0].shard_id], "test")
    version = writer.begin_attempt("task-0001")
    rows = writer.store.gallery_rows().slice(0, 0)
    metrics = {"recall_at_1/union/served": 0.5, "classes": 2.0}
    writer.commit_stage(
        version, writer.store.tree.head, "task-0001", artifacts(writer, version), rows, metrics
    )
    writer.release()
    return tmp_path / "root"


def test_status_says_what_waits_for_what(run: Run, root: Path) -> None:
    status = json.loads(run("status", root, "--json"))
    assert status["waits_to_be_indexed"] == ["c"]
    assert status["open_task"] == {"task": "task-0002", "shards": 1, "images": 3, "classes": 1}
    assert status["waits_to_be_learnt"] == []
    assert "to be indexed  c" in run("status", root)


def test_versions_lists_recall(run: Run, root: Path) -> None:
    (row,) = json.loads(run("versions", root, "--json"))
    assert (row["classes"], row["union_served"], row["old_served"]) == (2, 0.5, None)


def test_two_versions_compared_class_by_class(run: Run, tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    recalls = [{"oak": 0.5, "elm": 1.0}, {"oak": 0.75, "elm": 0.5, "ash": 1.0}]
    for number, recall in enumerate(recalls):
        task = f"task-{number + 1:04}"
        ref = shard(str(number))
        writer.record_landed([ref])
        index(writer, ref, dict.fromkeys(recall, 2))
        writer.close_task(task, [ref.shard_id], "test")
        version = writer.begin_attempt(task)
        rows, metrics = writer.store.gallery_rows().slice(0, 0), {"recall_by_class": recall}
        writer.commit_stage(version, writer.tree.head, task, artifacts(writer, version), rows, metrics)
    writer.release()
    diff = json.loads(run("versions", tmp_path / "root", "--diff", "v0001", "head", "--json"))
    assert [(row["class"], row["delta"]) for row in diff["gained"]] == [("oak", 0.25)]
    assert [(row["class"], row["delta"]) for row in diff["lost"]] == [("elm", -0.5)]
    assert diff["new_classes"] == ["ash"]
    said = run("versions", tmp_path / "root", "--diff", "v0001", "v0002")
    assert "elm" in said
    assert "1 classes gained recall, 1 lost" in said
    assert "versions begin with" in run("versions", tmp_path / "root", "--diff", "v", "head", code=1)


def test_rollback_and_forward_without_a_running_stream(run: Run, root: Path) -> None:
    learnt = json.loads(run("status", root, "--json"))["head"]
    first = json.loads(run("versions", root, "--json"))[0]["parent"]
    assert first in run("rollback", root, first)
    status = json.loads(run("status", root, "--json"))
    assert status["head"] == first
    assert [task["task"] for task in status["waits_to_be_learnt"]] == ["task-0001"]
    run("rollback", root, learnt)
    assert json.loads(run("status", root, "--json"))["waits_to_be_learnt"] == []


def test_forget_hides_and_deletes(run: Run, root: Path) -> None:
    run("forget", root, "--class", "oak")
    assert "oak" not in Store.open(str(root)).gallery_rows()["class_name"].to_pylist()


def test_quarantine_of_a_clean_stream_is_empty(run: Run, root: Path) -> None:
    assert json.loads(run("quarantine", root, "--json")) == []


def test_ingest_lands_a_folder_once(run: Run, tmp_path: Path) -> None:
    photos, inbox = tmp_path / "photos", tmp_path / "inbox"
    for category, _ in zip(glyph_categories(0, images=2), range(2), strict=False):
        folder = photos / re.sub(r"\W+", "-", category.class_name)
        folder.mkdir(parents=True)
        for number, image in enumerate(category.images):
            (folder / f"{number}.png").write_bytes(image)
    inbox.mkdir()
    assert "landed" in run("ingest", photos, inbox)
    before = sorted(inbox.rglob("*"))
    run("ingest", photos, inbox)
    assert sorted(inbox.rglob("*")) == before


def test_the_example_configuration_is_valid(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(run("config", "--example"))
    assert json.loads(run("config", "--show", path))["name"] == "stream"
    assert "properties" in json.loads(run("config", "--schema"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "nowhere"], "correct the path"),
        (["run", "none.yaml"], "name an existing YAML file"),
        (["demo", "--source", "nowhere", "--root", "unused"], "does not exist"),
        (["query", "leaf.jpg"], "leaf.jpg is not there; name an image file"),
        (["query", __file__], "--root with the stream root"),
        (["forget", "root"], "one of --class NAME, --item ID, --shard ID"),
        (["ingest", "nowhere", "inbox"], "does not exist"),
        (["rollback", "root", ""], "no version is named"),
        (["relearn", "root", ""], "no task is named"),
        (["adopt", "", "--root", "unused"], "would be the working folder; name one, or write a dot"),
    ],
)
def test_mistakes_end_with_a_remedy(run: Run, arguments: list[str], words: str, tmp_path: Path) -> None:
    message = run(*arguments, code=1)
    assert words in " ".join(message.split())
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "", "inbox"],
        ["init", ""],
        ["run", ""],
        ["query", ""],
        ["config", "--check", ""],
        ["demo", "--source", ""],
        ["upgrade", "root", "--model", ""],
        ["quarantine", "root", "--export", ""],
        ["ingest", "~/photos", "inbox"],
    ],
)
def test_a_path_of_a_variable_that_is_not_set_is_no_folder(run: Run, arguments: list[str]) -> None:
    """An empty path would be the working folder."""
    message = " ".join(run(*arguments, code=2).replace("│", " ").split())
    assert (
        "would be the working folder; name one, or write a dot" in message
        or "only a shell expands" in message
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "https://x/photos.zip", "inbox"],
        ["init", "s3://bucket/photos"],
        ["run", "s3://bucket/stream.yaml"],
        ["init", ".", "--weights", "gs://bucket/w.safetensors"],
        ["quarantine", "root", "--export", "s3://bucket/q.parquet"],
    ],
)
def test_an_address_is_no_path_of_this_machine(run: Run, arguments: list[str]) -> None:
    """`s3://bucket` became the folder `s3:/bucket`."""
    message = "".join(run(*arguments, code=2).replace("│", "").split())
    assert "has'://'init,asanaddresshas;thistakesaplaceonthismachine" in message


def test_every_command_of_the_readme_exists(run: Run) -> None:
    listed = run("--help")
    commands = set(re.findall(r"stream-odml (\w+)", README))
    assert commands
    assert [name for name in commands if name not in listed] == []


def test_help_has_an_example_for_every_command(run: Run) -> None:
    for name in set(re.findall(r"stream-odml (\w+)", README)):
        assert "Example" in run(name, "--help"), name
