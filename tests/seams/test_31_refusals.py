"""Seam 31: a task that the gate refused, or that was skipped, is told of wherever people look, and can be taken back.

Status, versions, page, report, metrics and the service name the task, the figures that spoke against it and the
command that helps, also when no stream runs. `relearn` makes it due again, exactly once, behind what waits; with
`--anyway` its result is published whatever the gate finds. While it happens the live view says so.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from deltalake import DeltaTable
from prometheus_client import generate_latest
from rich.console import Console
from typer.testing import CliRunner

from stream_odml.cli.console import StreamView
from stream_odml.cli.main import app
from stream_odml.cli.report import write_report
from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.boundary import BoundaryPolicy
from stream_odml.ingest.shard import ShardManifest
from stream_odml.learn.settings import StageSettings
from stream_odml.pipeline.figures import stream_figures
from stream_odml.pipeline.messages import StageResult
from stream_odml.pipeline.metrics import DriverMetrics
from stream_odml.pipeline.stages import Stages
from stream_odml.service.api import create_app
from stream_odml.service.backend import Driver
from stream_odml.service.replica import Replica
from stream_odml.store.errors import UnknownSubject
from stream_odml.store.ledger import LedgerState
from stream_odml.store.store import Store
from stream_odml.store.unlearnt import gentler, unlearnt_tasks
from stream_odml.store.writer import Writer
from tests.cluster.small_root import artifacts, claim, index, shard
from tests.service.tiny_stream import TinyStream

POLICY = BoundaryPolicy(new_classes=2, images=None, age_s=None)
REASON = "served Recall@1 on old classes would fall from 0.952 to 0.839, by more than 0.05"
FIGURES = {"parent_recall_at_1/old": 0.952, "recall_at_1/old/served": 0.839}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = claim(tmp_path / "root")
    yield writer
    writer.release()


def land(writer: Writer, *names: str) -> None:
    """A shard of two classes for each name, indexed."""
    for name in names:
        ref = shard(name)
        writer.record_landed([ref])
        index(writer, ref, {f"{name} one": 3, f"{name} two": 3})


def learn(writer: Writer, stages: Stages) -> str:
    """Learn what is due; the task."""
    order = stages.next_order()
    assert order is not None
    files = artifacts(writer, order.version_id)
    stages.commit(StageResult(order.version_id, order.parent, order.task, files))
    return order.task


def refuse(stages: Stages, times: int = 1) -> str:
    """Refuse what is due, as the gate does; the last task."""
    task = ""
    for _ in range(times):
        order = stages.next_order()
        assert order is not None
        stages.commit(
            StageResult(order.version_id, order.parent, order.task, metrics=FIGURES, refusal=REASON)
        )
        task = order.task
    return task


def refused_root(writer: Writer) -> Stages:
    """A root with one task learnt and the second refused twice, so that it is not tried any more."""
    stages = Stages(writer, POLICY, max_refusals=1)
    land(writer, "a", "b")
    assert stages.close_tasks() == ["task-0001", "task-0002"]
    assert learn(writer, stages) == "task-0001"
    assert refuse(stages, times=2) == "task-0002"
    assert stages.next_order() is None
    return stages


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    return result.output


def test_after_the_run_every_look_at_the_root_names_task_figures_and_remedy(
    writer: Writer, tmp_path: Path
) -> None:
    refused_root(writer)
    writer.release()
    root = str(tmp_path / "root")
    wanted = ("task-0002", "0.952", "0.839", "refused 2 times", f"stream-odml relearn {root} task-0002")
    for command in ("status", "versions"):
        said = run(command, root)
        assert all(part in said for part in wanted), (command, said)
        assert "task-0001 (" not in said  # what is learnt is no news
    (reported,) = json.loads(run("status", root, "--json"))["not_learnt"]
    assert (reported["task"], reported["state"], reported["attempts"]) == ("task-0002", "skipped", 2)
    assert (reported["images"], reported["classes"], reported["figures"]) == (6, 2, FIGURES)


def test_metrics_say_it(writer: Writer) -> None:
    refused_root(writer)
    metrics = DriverMetrics()
    metrics.figures = stream_figures(writer.store, writer.epoch)
    text = generate_latest(metrics.registry).decode()
    assert 'stream_odml_tasks_not_learnt{state="skipped"} 1.0' in text
    assert 'stream_odml_tasks_not_learnt{state="refused"} 0.0' in text
    (line,) = [row for row in text.splitlines() if row.startswith("stream_odml_task_not_learnt_info{")]
    assert 'task="task-0002"' in line
    assert "from 0.952 to 0.839" in line


def test_metrics_of_many_refusals_are_bounded(writer: Writer) -> None:
    stages = Stages(writer, POLICY, max_refusals=0)
    land(writer, *(f"s{number:02d}" for number in range(23)))
    stages.close_tasks()
    refuse(stages, times=23)
    metrics = DriverMetrics()
    metrics.figures = stream_figures(writer.store, writer.epoch)
    text = generate_latest(metrics.registry).decode()
    assert 'stream_odml_tasks_not_learnt{state="skipped"} 23.0' in text
    assert text.count("stream_odml_task_not_learnt_info{") == 20
    assert 'task="task-0023"' in text


def test_service_report_and_page_say_it_and_take_the_request(tmp_path: Path) -> None:
    asyncio.run(_service_report_and_page(tmp_path))


async def _service_report_and_page(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", "dog"], per_class=3)
    stream.stage()
    stream.land("b", ["<b>elm", "oak"], per_class=3)
    (waiting,) = stream.writer.ledger.indexed.values()
    stream.writer.close_task("task-0002", [waiting.shard_id], "test")
    refused = stream.writer.begin_attempt("task-0002")
    stream.writer.refuse(refused, "task-0002", REASON, FIGURES)
    stream.writer.skip_task("task-0002", f"refused 1 times, last: {REASON}")
    driver = _Driver(stream.writer)
    replica = Replica(stream.root, ServiceOptions(), driver=driver)
    replica.start()
    transport = httpx.ASGITransport(create_app(replica, ServiceOptions()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        answer = (await client.get("/v1/versions")).json()
        (reported,) = answer["not_learnt"]
        assert (reported["task"], reported["figures"]) == ("task-0002", FIGURES)
        assert REASON in reported["in_words"]
        assert "not-learnt" in (await client.get("/")).text
        gone = await client.post("/v1/tasks/task-0001/relearn")
        assert (gone.status_code, gone.json()["error"]) == (409, "learnt")
        assert (await client.post("/v1/tasks/task-0002/relearn?anyway=true")).status_code == 202
    assert driver.asked == [("task-0002", True)]
    replica.close()
    write_report(stream.root, str(tmp_path / "report.html"))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "from 0.952 to 0.839" in text
    assert "stream-odml relearn" in text
    stream.close()


class _Driver(Driver):
    """What the service hands the request to."""

    def __init__(self, writer: Writer) -> None:
        self.asked: list[tuple[str, bool]] = []

    async def relearn(self, task: str, anyway: bool) -> dict[str, Any]:
        self.asked.append((task, anyway))
        return {"task": task, "anyway": anyway}

    async def rollback(self, version: str, relearn: bool) -> dict[str, Any]:
        raise AssertionError

    async def forget(self, kind: str, name: str) -> dict[str, Any]:
        raise AssertionError

    async def status(self) -> dict[str, Any]:
        return {}


def test_relearn_makes_the_task_due_again_with_all_its_tries(writer: Writer, tmp_path: Path) -> None:
    refused_root(writer)
    writer.release()
    root = str(tmp_path / "root")
    for _ in range(3):  # a request that is repeated is one request
        assert "task-0002" in run("relearn", root, "task-0002")
    kinds = DeltaTable(f"{root}/ledger").to_pyarrow_table()["kind"].to_pylist()
    assert kinds.count("relearn") == 1
    again = Writer.claim(root, "test")
    stages = Stages(again, POLICY, max_refusals=1)
    assert unlearnt_tasks(again.ledger, again.tree) == []
    order = stages.next_order()
    assert order is not None
    assert (order.task, order.retry, order.anyway) == ("task-0002", 0, False)
    refuse(stages, times=2)
    assert stages.next_order() is None  # refused as often as the first time, it is skipped again
    stages_learnt = again.tree.learnt()
    assert stages_learnt == {"task-0001"}
    again.release()


def test_anyway_is_handed_to_the_trainer_with_the_gentlest_settings(writer: Writer, tmp_path: Path) -> None:
    refused_root(writer)
    writer.release()
    root = str(tmp_path / "root")
    assert "whatever the gate finds" in run("relearn", root, "task-0002", "--anyway")
    again = Writer.claim(root, "test")
    stages = Stages(again, POLICY, max_refusals=1)
    order = stages.next_order()
    assert order is not None
    assert (order.task, order.retry, order.anyway) == ("task-0002", 1, True)
    learn(again, stages)
    assert again.tree.learnt() == {"task-0001", "task-0002"}
    assert unlearnt_tasks(again.ledger, again.tree) == []
    with pytest.raises(ValueError, match="learnt already"):
        again.relearn_task("task-0002")
    again.release()


def test_a_task_taken_back_stands_behind_those_that_wait(writer: Writer) -> None:
    stages = refused_root(writer)
    land(writer, "c", "d")
    stages.close_tasks()
    under_way = stages.next_order()
    assert under_way is not None
    assert under_way.task == "task-0003"
    writer.relearn_task("task-0002")
    assert stages.is_current(under_way.version_id)
    assert [learn(writer, stages) for _ in range(3)] == ["task-0003", "task-0004", "task-0002"]


def test_what_a_rollback_skipped_comes_back_too(writer: Writer) -> None:
    stages = Stages(writer, POLICY, max_refusals=1)
    land(writer, "a")
    stages.close_tasks()
    root_version = writer.tree.head
    learn(writer, stages)
    first = writer.tree.head
    writer.move_head(root_version, "rollback", skip_abandoned=True)
    (reported,) = unlearnt_tasks(writer.ledger, writer.tree)
    assert "rollback" in reported.in_words()
    writer.move_head(first, "rollback")
    assert unlearnt_tasks(writer.ledger, writer.tree) == []  # the head knows it, whatever was skipped
    writer.move_head(root_version, "rollback")
    writer.relearn_task("task-0001")
    assert learn(writer, stages) == "task-0001"


def test_what_cannot_be_relearnt_says_why(writer: Writer, tmp_path: Path) -> None:
    stages = Stages(writer, POLICY, max_refusals=1)
    ref = shard("one", ShardManifest(task="spring", task_complete=True))
    writer.record_landed([ref])
    index(writer, ref, {"oak": 5})
    (task,) = stages.close_tasks()
    writer.release()
    root = str(tmp_path / "root")
    with pytest.raises(ValueError, match=r"5 images of 1 classes.*land more"):
        run("relearn", root, task)
    with pytest.raises(UnknownSubject, match=f"nearest are {task}"):
        run("relearn", root, "task-001")


def test_a_crash_between_refusal_and_skip_costs_no_further_try(writer: Writer) -> None:
    stages = Stages(writer, POLICY, max_refusals=0)
    land(writer, "a", "b")
    stages.close_tasks()
    order = stages.next_order()
    assert order is not None
    writer.refuse(order.version_id, order.task, REASON, FIGURES)  # and here the driver died
    restarted = Stages(writer, POLICY, max_refusals=0).next_order()
    assert restarted is not None
    assert restarted.task == "task-0002"
    assert REASON in str(writer.ledger.tasks["task-0001"].skipped)


def test_older_readers_and_roots_get_on(writer: Writer) -> None:
    """A ledger without the new rows replays as before; the order of tasks is that of their closing."""
    stages = Stages(writer, POLICY, max_refusals=1)
    land(writer, "a", "b", "c")
    stages.close_tasks()
    state: LedgerState = writer.ledger
    assert [task.task_id for task in state.due_tasks(frozenset())] == ["task-0001", "task-0002", "task-0003"]


def test_the_live_view_says_it_once_when_it_happens(writer: Writer) -> None:
    stages = Stages(writer, POLICY, max_refusals=1)
    land(writer, "a")
    stages.close_tasks()
    refuse(stages)
    before = view_status(writer.store)
    out = io.StringIO()
    time.sleep(0.01)
    with StreamView(Console(file=out, width=400), "stream") as view:
        view.show(before)
        assert "refused" not in out.getvalue()  # an old refusal is no news
        refuse(stages)
        for _ in range(3):
            view.show(view_status(writer.store))
    assert out.getvalue().count("was not learnt: refused 2 times") == 1
    writer.relearn_task("task-0001")
    out = io.StringIO()
    with StreamView(Console(file=out, width=400), "stream") as view:
        view.show(view_status(writer.store))
        refuse(stages)
        view.show(view_status(writer.store))
    assert f"was refused: {REASON}; trying again with {gentler(1)}" in out.getvalue()


def view_status(store: Store) -> dict[str, Any]:
    """What the driver says, without a driver."""
    figures = stream_figures(store, 1)
    stage = {"phase": "idle", "task": "", "step": 0, "total_steps": 0, "losses": {}}
    return {
        "head": figures.head, "shards": figures.shards, "images": figures.images, "classes": figures.classes,
        "recall_at_1": {}, "problem": None, "stage": stage, "not_learnt": figures.not_learnt,
    }  # fmt: skip


def test_words_of_the_next_try_are_what_it_does() -> None:
    from stream_odml.pipeline.stage_learner import retried

    settings = StageSettings()
    for refusals in (1, 2):
        changed = retried(settings, refusals)
        factor, share = (
            changed.weight_old / settings.weight_old,
            changed.learning_rate / settings.learning_rate,
        )
        assert gentler(refusals) == (
            f"what holds the old classes {factor:g} times stronger and {share:g} of the learning rate"
        )
    assert replace(retried(settings, 0)) == settings
