"""Commands by which something is lost: `--dry-run` changes nothing, a script has to say `--yes`."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stream_odml.cli.main import app
from stream_odml.cli.status_text import status_text
from stream_odml.store.store import Store
from tests.cluster.small_root import artifacts, claim, index, shard


@pytest.fixture
def root(tmp_path: Path) -> str:
    """One learnt task of two classes."""
    writer = claim(tmp_path / "root")
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 3, "elm": 3})
    writer.close_task("task-0001", [ref.shard_id], "test")
    version = writer.begin_attempt("task-0001")
    rows = writer.store.gallery_rows().slice(0, 0)
    writer.commit_stage(version, writer.tree.head, "task-0001", artifacts(writer, version), rows, {})
    writer.release()
    return str(tmp_path / "root")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "400"})


def state(root: str) -> tuple[str, int, list[str]]:
    store = Store.open(root)
    skipped = [task.task_id for task in store.ledger.tasks.values() if task.skipped]
    return store.tree.head, len(store.gallery_rows()), skipped


def test_a_dry_run_shows_what_would_be_touched_and_touches_nothing(root: str) -> None:
    before = state(root)
    said = run("forget", root, "--class", "oak", "--dry-run").output
    assert "class oak: 3 items would be hidden at once and deleted" in said
    said = run("rollback", root, "v0000", "--dry-run").output
    assert f"head {before[0]} would become v0000" in said
    assert "task-0001 (2 classes, 6 images) would be learnt again" in said
    said = run("rollback", root, "v0000", "--no-relearn", "--dry-run", "--yes").output
    assert "would be skipped, until `stream-odml relearn` names it" in said
    assert state(root) == before


def test_a_script_says_yes_to_skip_tasks(root: str) -> None:
    before = state(root)
    refused = run("rollback", root, "v0000", "--no-relearn")
    assert "--yes" in str(refused.exception)
    assert state(root) == before
    assert run("rollback", root, "v0000", "--no-relearn", "--yes").exit_code == 0
    assert state(root)[2] == ["task-0001"]


@pytest.mark.parametrize(("answer", "left"), [("n\n", 6), ("y\n", 3)])
def test_a_person_is_asked(root: str, answer: str, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_odml.cli.changing.is_terminal", lambda: True)
    monkeypatch.setattr("stream_odml.cli.options.is_terminal", lambda: True)
    result = CliRunner().invoke(app, ["forget", root, "--class", "oak"], input=answer)
    assert "3 items would be hidden" in result.output
    assert state(root)[1] == left


def test_names_that_are_none_have_their_nearest(root: str) -> None:
    assert "'oak'" in str(run("forget", root, "--class", "oka", "--dry-run").exception)
    assert "versions begin with" in str(
        run("rollback", root, "v9", "--dry-run").exception
    ) or "no version" in str(run("rollback", root, "v9", "--dry-run").exception)


def test_status_says_what_the_running_stream_says_is_wrong(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"driver": {"problem": "shards wait: no indexer starts"}}
    monkeypatch.setattr("stream_odml.client.Client.status", lambda _: answers)
    assert json.loads(run("status", root, "--json").output)["problem"] is None  # none runs
    service = {"service": "http://127.0.0.1:9", "host": platform.node(), "pid": os.getpid()}
    (Path(root) / "endpoints.json").write_text(json.dumps(service))
    assert (
        run("status", root).output.splitlines()[1] == "the stream that runs: shards wait: no indexer starts"
    )
    answers["driver"]["problem"] = ""
    assert "nothing needs attention" in run("status", root).output
    monkeypatch.undo()
    assert "nothing needs attention" in run("status", root).output  # nobody answers there


def test_status_says_first_what_needs_attention(root: str) -> None:
    report = json.loads(run("status", root, "--json").output)
    assert "nothing needs attention" in run("status", root).output
    report["not_learnt"] = [{"in_words": "task-7 was refused: because"}]
    report["quarantined"] = {"truncated_image": 3, "missing_label": 1}
    report["set_aside"] = {f"bad-{i}": "hangs" for i in range(9)}
    report["waits_to_be_learnt"] = [
        {"task": f"task-{i}", "name": "spring", "closed": "named", "refused": i} for i in range(7)
    ]
    from rich.console import Console

    console = Console(width=300, record=True)
    console.print(status_text(report, "ROOT"))
    lines = console.export_text().splitlines()
    assert "task-7 was refused: because" in lines[1]
    assert sum("was dead-lettered" in line for line in lines) == 5
    assert any("4 rows could not be used (1 missing_label, 3 truncated_image); `stream-odml quarantine ROOT`" in line
               for line in lines)  # fmt: skip
    due = next(line for line in lines if line.startswith("to be learnt"))
    assert "task-1 (spring): named, refused 1 times" in due
    assert due.rstrip().endswith("and 2 more")
