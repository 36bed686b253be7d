"""Seam 34: the demo shows a win that can be believed, beside what the same stream gets frozen and fine-tuned.

The baselines are measured by the demo itself, from its first version, on its held-out images. The gate refuses no task
because few images happened to fall badly. Own images get as many tasks as asked for; too few of them are told of.
"""

from __future__ import annotations

import io
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from stream_odml.cli import baselines
from stream_odml.cli.baselines import Baseline, measure_baselines
from stream_odml.cli.console import waiting
from stream_odml.cli.demo import Measured, _verdict, demo_config, source_categories, unlearnt_shards
from stream_odml.cli.demo_table import demo_table, doubts, reading, summary
from stream_odml.cli.main import app
from stream_odml.cli.producer import Category, Producer
from stream_odml.config.gate import GateConfig
from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.decode import decode_image
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import Embedder, embed, embedder_from_bytes, embedder_to_bytes
from stream_odml.pipeline.evaluating import change_error
from stream_odml.pipeline.gate import verdict
from stream_odml.pipeline.holdout import is_held_out
from stream_odml.pipeline.indexing import IndexOptions
from stream_odml.store.artifacts import BANK, STUDENT
from stream_odml.store.store import Store
from tests.pipeline.trunk_stream import CATEGORIES, Trunk
from tests.service.tiny_stream import SPEC, TinyStream, picture

STEPS = 3


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyStream:
    """Three tasks of two classes, half of the images held out; the first version has a bank, as a learnt one has."""
    options = IndexOptions(max_pixels=1 << 20, thumbnails=False, held_out=0.5)
    monkeypatch.setattr("tests.service.tiny_stream.OPTIONS", options)
    stream = TinyStream(tmp_path)
    for name, classes in (("a", ["ash", "bay"]), ("b", ["elm", "fir"]), ("c", ["oak", "yew"])):
        stream.land(name, classes, per_class=8)
        version = stream.stage()
        if name == "a":
            ones = np.ones((2, SPEC.dim))
            bank = ClassBank.empty(SPEC.dim).with_classes(classes, version, np.array([8, 8]), ones, ones)
            stream.writer.replace_artifact(version, BANK, bank.to_bytes(), "test")
    return stream


def config_of(stream: TinyStream) -> StreamConfig:
    return parse_config(
        {
            "root": stream.root, "model": asdict(SPEC), "evaluation": {"held_out": 0.5},
            "learning": {"stage_steps": STEPS, "classes_per_batch": 2, "images_per_class": 2, "learning_rate": 0.05},
        }
    )  # fmt: skip


def recall(queries: np.ndarray, gallery: np.ndarray, classes: list[str]) -> float:
    """Share of images whose nearest other is of their class: a loop that anybody can check."""
    right = 0
    for i, query in enumerate(queries):
        scores = [
            -2.0 if j == i else float(query @ row / np.linalg.norm(query) / np.linalg.norm(row))
            for j, row in enumerate(gallery)
        ]
        right += classes[int(np.argmax(scores))] == classes[i]
    return right / len(queries)


def test_baselines_are_what_a_naive_loop_finds(stream: TinyStream, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Embedder] = []
    trained_on: list[str] = []
    learn = baselines._FineTuned.learn
    images = baselines._training_images

    def seen(tuned: baselines._FineTuned, *arguments: object) -> bool:
        done = learn(tuned, *arguments)  # type: ignore[arg-type]
        models.append(embedder_from_bytes(embedder_to_bytes(tuned.model)))
        return done

    def named(store: Store, config: StreamConfig, task: str):  # type: ignore[no-untyped-def]
        for name, pixels in images(store, config, task):
            trained_on.append(f"{task}:{name}")
            yield name, pixels

    monkeypatch.setattr(baselines._FineTuned, "learn", seen)
    monkeypatch.setattr(baselines, "_training_images", named)
    reported: list[str] = []
    store = Store.open(stream.root)
    found = measure_baselines(store, config_of(stream), reported.append)
    versions = store.tree.lineage(store.tree.head)[1:]
    assert list(found) == versions
    assert f"step {STEPS} of {STEPS}" in reported[-1]
    assert {line.split(":")[0] for line in trained_on} == {"task-0002", "task-0003"}
    held = [item for item in stream.images if is_held_out(item, 0.5)]
    assert len(trained_on) == len([item for item in stream.images if item[0] in "bc"]) - len(
        [item for item in held if item[0] in "bc"]
    )  # every other image once, no held-out one
    first = embedder_from_bytes(store.artifact(versions[0], STUDENT))
    tuned = [first, *models]
    classes = {row["item_id"]: row["class_name"] for row in store.gallery_rows(vectors=False).to_pylist()}
    for stage, version in enumerate(versions):
        items = sorted(item for item in held if item[0] in "abc"[: stage + 1])
        pixels = np.stack(
            [decode_image(stream.images[item], SPEC.image_size, DEFAULT_MAX_PIXELS) for item in items]
        )
        names = [classes[item] for item in items]
        frozen = embed(first, pixels)
        assert found[version].images == len(items)
        assert found[version].frozen == pytest.approx(recall(frozen, frozen, names))
        stale = np.stack(
            [embed(tuned["abc".index(item[0])], pixels[i : i + 1])[0] for i, item in enumerate(items)]
        )
        assert found[version].finetuned == pytest.approx(recall(embed(tuned[stage], pixels), stale, names))
    stream.close()


def test_under_a_solved_head_the_first_version_answers_for_ever_and_a_head_is_trained_on_every_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"})
    for name, first in (("one", 0), ("two", 3)):
        stream.land(name, CATEGORIES[first : first + 3])
        stream.learn()
    assert (stream.improve() or stream.later()) is not None  # a slow stage, which learns no new task
    stream.land("three", CATEGORIES[6:9])
    stream.learn()
    tuned: list[str] = []
    learn = baselines._FineTuned.learn

    def seen(one: baselines._FineTuned, store: Store, task: str, *rest: object) -> bool:
        tuned.append(task)
        return learn(one, store, task, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(baselines._FineTuned, "learn", seen)
    store = Store.open(stream.config.root)
    found = measure_baselines(store, stream.config)
    base, head, slow, last = store.tree.lineage(store.tree.head)[1:]
    assert list(found) == [base, head, slow, last]
    assert tuned == ["task-0001", "task-0002", "task-0003"], (
        "no task twice, and nothing for the trunk that moved"
    )
    assert found[slow] == found[head]
    solved, trunk = store.head_of(base), embedder_from_bytes(store.artifact(base, STUDENT))
    images = {
        row["item_id"]: (row["class_name"], row["image"])
        for path in store.files.list("holdout/")
        for row in pq.read_table(io.BytesIO(store.files.read(path.path))).to_pylist()
    }
    names = [name for name, _ in images.values()]
    side = stream.config.model.image_size
    z = solved.embed(
        embed(trunk, np.stack([decode_image(i, side, DEFAULT_MAX_PIXELS) for _, i in images.values()]))
    )
    known, unseen = z[:, : solved.known_dim], z[:, solved.slice_of_new]
    right, asked = 0, [row for row, name in enumerate(names) if names.count(name) > 1]
    for query in asked:
        scores = [
            -2.0 if item == query
            else known[query] @ known[item] if solved.knows(names[item])
            else solved.new_scale * (unseen[query] @ unseen[item]) + solved.new_bonus
            for item in range(len(names))
        ]  # fmt: skip
        right += names[int(np.argmax(scores))] == names[query]
    assert found[last].images == len(names)
    assert found[last].frozen == pytest.approx(right / len(asked))
    assert found[last].finetuned is not None


def test_the_verdict_of_a_root_whose_stream_has_ended(
    stream: TinyStream, capsys: pytest.CaptureFixture[str]
) -> None:
    stream.land("d", ["fig", "hop"], per_class=8)
    (waiting,) = stream.writer.ledger.indexed.values()
    stream.writer.close_task("task-0004", [waiting.shard_id], "test")
    stream.writer.refuse(stream.writer.begin_attempt("task-0004"), "task-0004", "it would hurt", {"a": 1.0})
    stream.writer.skip_task("task-0004", "refused 1 times")
    measured = Measured(ok=3)
    _verdict(config_of(stream), set(), measured, Console(width=140))
    stream.close()
    said = " ".join(capsys.readouterr().out.split())
    assert "fine-tuned, gallery stale" in said
    assert "against never learning on" in said
    assert "was not learnt: refused 1 times, last: it would hurt" in said
    assert f"`stream-odml relearn {stream.root} task-0004`" in said
    assert "queries 3 answered, 0 failed" in said
    assert (measured.refused, len(measured.baselines)) == (1, 3)


def test_without_the_landed_images_only_the_frozen_one_is_measured(stream: TinyStream) -> None:
    for path in stream.inbox.glob("*.parquet"):
        path.unlink()
    found = list(measure_baselines(Store.open(stream.root), config_of(stream)).values())
    stream.close()
    assert [b.frozen is not None for b in found] == [True, True, True]
    assert [b.finetuned is not None for b in found] == [True, False, False]


ROWS = [
    {"version": "v0001-a", "task": "task-0001", "classes": 15, "union_served": 0.92},
    {"version": "v0002-b", "task": "task-0002", "classes": 30, "union_served": 0.86},
    {"version": "v0003-c", "task": "task-0003", "classes": 45, "union_served": 0.835},
]
OTHERS = {
    "v0001-a": Baseline(0.92, 0.92, 62),
    "v0002-b": Baseline(0.73, 0.71, 108),
    "v0003-c": Baseline(0.70, 0.665, 170),
}


def test_the_table_reads_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=120)
    console.print(demo_table(ROWS, OTHERS))
    table = capsys.readouterr().out
    (last,) = [line for line in table.splitlines() if "v0003-c" in line]
    assert [part for part in last.replace("│", " ").split() if part] == [
        "v0003-c", "45", "170", "0.835", "0.700", "0.665"
    ]  # fmt: skip
    said = " ".join(reading(ROWS, OTHERS))
    assert "15 to tell apart at first, 45 at last" in said
    assert "+0.135 against never learning on, +0.170 against fine-tuning" in said
    assert "170 images are 0.057" in said


def test_what_was_not_measured_is_a_dash_and_no_claim() -> None:
    console = Console(width=120, record=True)
    console.print(demo_table(ROWS, {}))
    assert "-" in console.export_text()
    assert not any("against" in line for line in reading(ROWS, {}))
    unmeasured = [{"version": "v", "classes": 2, "union_served": None}]
    assert "nothing was measured" in reading(unmeasured, {})[0]
    assert "nothing was measured" in reading([], {})[0]


def test_the_benchmark_gets_the_figures() -> None:
    figures = Measured(refused=0, baselines=OTHERS).figures()
    assert figures["refused"] == 0.0
    assert figures["recall_at_1_union_frozen"] == 0.70
    assert figures["recall_at_1_union_finetuned_stale"] == 0.665
    assert "recall_at_1_union_frozen" not in Measured().figures()


def folder(path: Path, classes: int, images: int) -> Path:
    for c in range(classes):
        (path / f"class {c}").mkdir(parents=True)
        for i in range(images):
            (path / f"class {c}" / f"{i}.png").write_bytes(picture(c * images + i))
    return path


@pytest.mark.parametrize(("classes", "stages", "each"), [(30, 3, 10), (90, 3, 15), (4, 3, 2), (30, None, 10)])
def test_own_images_make_as_many_tasks_as_asked_for(
    tmp_path: Path, classes: int, stages: int | None, each: int
) -> None:
    categories, per_task = source_categories(folder(tmp_path / "photos", classes, 2), stages)
    assert (len(categories), per_task) == (classes, each)


def test_too_few_images_and_a_net_without_weights_are_reported_before_the_start(tmp_path: Path) -> None:
    few = [Category(f"c{i}", [b""] * 5) for i in range(6)]
    many = [Category(f"c{i}", [b""] * 40) for i in range(30)]
    assert "30 images of 6 categories leave about 8 held out: too few to measure" in doubts(few, None)[0]
    assert "--weights" in doubts(few, None)[1]
    assert len(doubts(many, None)) == 1
    assert doubts(many, tmp_path / "weights.safetensors") == []


def test_weights_choose_a_net_and_rates_that_suit_them(tmp_path: Path) -> None:
    config = demo_config(tmp_path / "root", 0, 0, 0, weights=tmp_path / "w.safetensors", task_categories=10)
    assert (config.model.backbone, config.model.image_size) == ("mobilenetv2", 96)
    assert config.learning.learning_rate == 1e-4
    assert config.boundary.new_classes == 10
    result = CliRunner().invoke(app, ["demo", "--weights", "w.safetensors"])
    assert "--source" in str(result.exception)


def test_the_stream_begins_with_a_task_of_its_own_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """Its shards land whatever waits, and each run that ends among them says the same of them."""
    categories = [Category(f"c{i}", [picture(2 * i), picture(2 * i + 1)]) for i in range(8)]
    for first, shards in ((0, 2), (1, 2)):
        producer = Producer(str(tmp_path), iter(categories[2 * first :]), 2, 60.0, lambda: False, first, 2)
        producer.start()
        deadline = time.monotonic() + 30
        while first + len(producer.landed) < shards and time.monotonic() < deadline:
            time.sleep(0.02)
        producer.stop()
        assert not producer.exhausted
    landed = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert landed == ["base.task.json", "shard-00000.parquet", "shard-00001.parquet"]


def test_a_skipped_task_does_not_stop_the_producer(tmp_path: Path) -> None:
    """Its shards wait for nothing: counted as waiting, two skipped tasks would end an endless stream for good."""
    stream = TinyStream(tmp_path)
    assert unlearnt_shards(stream.writer.store) == 0
    stream.land("a", ["ash", "bay"])
    assert unlearnt_shards(stream.writer.store) == 1
    (waiting,) = stream.writer.ledger.indexed.values()
    stream.writer.close_task("task-0001", [waiting.shard_id], "test")
    assert unlearnt_shards(stream.writer.store) == 1
    stream.writer.skip_task("task-0001", "refused 2 times")
    assert unlearnt_shards(stream.writer.store) == 0
    stream.close()


def falls(random: np.random.Generator, true_fall: float) -> dict[str, float]:
    """Figures of 60 queries of 15 classes whose Recall@1 falls by so much on average, from 0.9."""
    labels = np.repeat(np.arange(15), 4)
    before = random.random(60) < 0.9
    after = np.where(random.random(60) < 2 * true_fall + 0.08, random.random(60) < 0.5, before)
    error = change_error((after * 1.0 - before * 1.0).astype(np.float32), labels)
    return {
        "parent_recall_at_1/old": float(before.mean()),
        "recall_at_1/old/served": float(after.mean()),
        "change_error/old": error or 0.0,
        "queries/old": 60.0,
    }


def test_the_gate_takes_no_chance_for_a_loss_and_no_disaster_for_chance() -> None:
    random = np.random.default_rng(0)
    gate, exact = GateConfig(), GateConfig(certainty=0.0)
    small = [falls(random, 0.02) for _ in range(400)]
    assert (
        sum(verdict(exact, f) is not None for f in small) > 80
    )  # what every figure taken for exact would do
    assert sum(verdict(gate, f) is not None for f in small) < 20
    large = [falls(random, 0.4) for _ in range(100)]
    assert sum(verdict(gate, f) is not None for f in large) > 95


def test_one_sentence_sums_it_up() -> None:
    last = {"version": "v2", "task": "task-0002", "classes": 45, "union_served": 0.951}
    # Between the two a slow stage, which learns no new task.
    rows = [
        {"version": name, "task": "task-0001", "classes": 15, "union_served": 0.9}
        for name in ("v1", "v1-slow")
    ] + [last]
    said = summary(rows, {"v2": Baseline(0.82, 0.204, 100)})
    assert said == (
        "Of 45 classes, learnt in 2 tasks, it finds the right one first for 95% of new images; 82% had it never learnt "
        "on, 20% had it been fine-tuned and its gallery left as it was."
    )
    assert summary([{"version": "v1", "classes": 2, "union_served": None}], {}) is None
    assert str(summary(rows, {})).endswith("for 95% of new images.")


def test_a_name_of_transformers_is_kept_as_it_is_and_solved(tmp_path: Path) -> None:
    config = demo_config(tmp_path / "root", 0, 0, 0, backbone="facebook/dinov2-small")
    assert (config.model.backbone, config.model.pretrained) == ("transformers:facebook/dinov2-small", True)
    assert (config.model.head, config.learning.trunk) == ("discriminant", "frozen")
    both = ["demo", "--source", "x", "--weights", "w.safetensors", "--backbone", "b"]
    assert "give one of the two" in str(CliRunner().invoke(app, both).exception)


def test_what_is_waited_for_is_said_and_seconds_are_counted_on_a_terminal() -> None:
    for terminal, wanted in ((True, "0:00:0"), (False, "starting …")):
        console = Console(width=80, force_terminal=terminal, record=True)
        with waiting(console, "starting"):
            time.sleep(0.2)
        assert wanted in console.export_text()
