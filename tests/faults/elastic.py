"""A node that goes is done without, one that comes is used, and recall does not suffer; a cut cable is survived.

The same stream is learnt twice on a cluster of two nodes: once undisturbed, once with the far node lost in the middle
of a stage, done without for a stage, and brought back. Needs root (network namespaces).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.store.store import Store
from tests.faults.live import stream_yaml
from tests.faults.nodes import TwoNodes, cluster_settings
from tests.faults.oracle import violations
from tests.faults.process import StreamProcess
from tests.faults.truth import Truth
from tests.faults.watch import Watch, wait_for
from tests.measured import Measured

TASKS, CATEGORIES, IMAGES, SIZE = 4, 16, 10, 24
STEPS = 240
FIGURES = ("recall_at_1/union/served", "recall_at_1/union/reextracted")
WAIT_S = 240.0
RESIZED_S = 90.0
"""Ray Train looks once a minute whether there is room for another worker; then the group starts anew."""


class Scene:
    """A stream on two nodes, its tasks landed one by one."""

    def __init__(self, folder: Path, nodes: TwoNodes) -> None:
        self.nodes, self.root, self.truth = nodes, folder / "root", Truth()
        config = stream_yaml(
            folder / "stream.yaml",
            self.root,
            model={"dim": 32, "image_size": 24},
            learning={
                "base_steps": STEPS,
                "stage_steps": STEPS,
                "classes_per_batch": 8,
                "images_per_class": 3,
            },
            boundary={"new_classes": None},
            evaluation={"held_out": 0.3},
            cluster={"serve": False, **cluster_settings(nodes)},
        )
        port = yaml.safe_load(config.read_text())["metrics"]["port"]
        self.watch = Watch(self.root, port)
        self.watch.start()
        self.process = StreamProcess(config, environment=nodes.environment)
        self.watch.session = self.process.pid
        self.seen: list[tuple[float, int, int, int]] = []

    def close(self) -> None:
        """End all of it."""
        self.watch.stop()
        self.process.kill_tree()

    def land(self, number: int) -> None:
        """Land a task and say that it is complete."""
        glyphs = glyph_categories(0, images=IMAGES, size=SIZE, start=number * CATEGORIES)
        items = {
            f"{number}/{i}/{j}": NewItem(image, kind.class_name, item_id=f"{number}/{i}/{j}")
            for i, kind in enumerate(islice(glyphs, CATEGORIES))
            for j, image in enumerate(kind.images)
        }
        known = {name: item.class_name for name, item in items.items()}
        self.truth.offer(known)
        name = f"task-{number}"
        shard = land_items(self.root / "inbox", name, items.values())
        self.truth.confirm(f"{name}.parquet", known)
        complete_task(self.root / "inbox", name, [shard])

    def until(self, what: str, condition: Callable[[], bool]) -> float:
        """Wait, and note who works; seconds. Raises AssertionError."""

        def look() -> bool:
            sight = self.watch.sight
            now = (sight.stage, sight.step, sight.workers)
            if sight.phase == "training" and (not self.seen or self.seen[-1][1:] != now):
                self.seen.append((time.monotonic(), *now))
            return condition()

        took = wait_for(look, WAIT_S)
        if took is None:
            raise AssertionError(f"{what} never came: {self.watch.sight}\n{self.process.tail()}")
        return took

    def learnt(self, count: int) -> Callable[[], bool]:
        """Whether so many tasks are learnt."""
        return lambda: self.watch.sight.learnt >= count

    def training(self, stage: int, workers: int | None = None, share: float = 0.0) -> Callable[[], bool]:
        """Whether a stage has come so far, on so many workers."""

        def holds() -> bool:
            now = self.watch.sight
            there = now.stage == stage and now.phase == "training" and now.step > share * STEPS
            return there and workers in (None, now.workers)

        return holds

    def recalls(self) -> list[dict[str, float]]:
        """Of each version of the head's line."""
        store = Store.open(str(self.root))
        line = store.tree.lineage(store.tree.head)[1:]
        return [{name: round(store.tree.get(v).metrics[name], 4) for name in FIGURES} for v in line]

    def verdict(self) -> str:
        """The oracle's last word."""
        return "; ".join(v.text for v in violations(Store.open(str(self.root)), self.truth)) or "ok"


def run(report: Measured, seed: int) -> int:
    """Both streams side by side; how many promises were broken."""
    calm = _scene(_undisturbed)
    report.say(f"undisturbed: {calm}")
    lost = _scene(_loses_a_node)
    report.say(f"with a node lost and found: {lost}")
    report.row(part="elastic", how="undisturbed", seed=seed, **calm)
    report.row(part="elastic", how="a node lost in stage 2 and brought back in stage 3", seed=seed, **lost)
    for name in FIGURES:
        short = name.rpartition("/")[2]
        report.figure(f"elastic_r1_{short}_undisturbed", calm["recalls"][-1][name])
        report.figure(f"elastic_r1_{short}_node_lost", lost["recalls"][-1][name])
    report.figure("elastic_down_s", lost["down_s"])
    return sum(1 for reported in (calm, lost) if reported["verdict"] != "ok")


def run_cut(report: Measured, seed: int) -> int:
    """The cable between the nodes is cut in the middle of a stage, for longer than it takes to be noticed."""
    row = _scene(_cut)
    report.say(f"cut: {row}")
    report.row(part="cut", seed=seed, **row)
    report.figure("cut_to_step_s", row["to_step_s"])
    return 0 if row["verdict"] == "ok" else 1


def _scene(play: Callable[[Scene], dict[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nodes-") as folder, TwoNodes(2, 1) as nodes:
        scene = Scene(Path(folder), nodes)
        try:
            reported = play(scene)
            return {
                **reported,
                "recalls": scene.recalls(),
                "workers": _workers(scene),
                "verdict": scene.verdict(),
            }
        finally:
            scene.close()


def _workers(scene: Scene) -> list[str]:
    """Which stage ran on how many workers, in order."""
    found: list[str] = []
    for _, stage, _, workers in scene.seen:
        text = f"stage {stage}: {workers}"
        if not found or found[-1] != text:
            found.append(text)
    return found


def _undisturbed(scene: Scene) -> dict[str, Any]:
    for number in range(TASKS):
        scene.land(number)
        scene.until(f"task {number}", scene.learnt(number + 1))
    return {}


def _into_stage_two(scene: Scene) -> None:
    """Learn the base task and stop in the midst of the next one, on both workers."""
    scene.land(0)
    scene.until("the base stage", scene.learnt(1))
    scene.land(1)
    scene.until("stage 2 on two workers", scene.training(2, 2, 0.3))


def _loses_a_node(scene: Scene) -> dict[str, Any]:
    _into_stage_two(scene)
    scene.nodes.lose()
    down = scene.until("stage 2 on one worker", scene.training(2, 1))
    scene.until("stage 2", scene.learnt(2))
    scene.land(2)
    scene.until("stage 3 on one worker", scene.training(3, 1))
    scene.nodes.add()
    began = time.monotonic()
    scene.until("stage 3", scene.learnt(3))
    time.sleep(max(0.0, began + RESIZED_S - time.monotonic()))
    scene.land(3)
    scene.until("stage 4 on two workers", scene.training(4, 2))
    scene.until("stage 4", scene.learnt(4))
    return {"down_s": round(down, 1)}


def _cut(scene: Scene) -> dict[str, Any]:
    _into_stage_two(scene)
    scene.nodes.cut()
    took = scene.until("stage 2 on one worker", scene.training(2, 1))
    scene.until("stage 2", scene.learnt(2))
    scene.nodes.mend()
    ended = wait_for(lambda: scene.nodes.far_has_ended, 60.0)
    scene.land(2)
    scene.until("stage 3", scene.learnt(3))
    return {"to_step_s": round(took, 1), "far_ended_s": None if ended is None else round(ended, 1)}
