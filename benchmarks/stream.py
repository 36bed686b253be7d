"""Real images through the whole stream, serving on: tasks land one by one, each is learnt, the table is kept.

    python -m benchmarks.stream --data omniglot.parquet --plan alphabets --image-size 28
    python -m benchmarks.stream --data flowers102.parquet --plan 62+4x10 --weights mobilenetv2.safetensors

``alphabets``: the background alphabets are the base task, each evaluation alphabet one task after it.
``B+NxK``: B base classes, then N tasks of K classes, in the order of the file's labels.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.common import Report, common_arguments
from stream_odml.cli.console import StreamView, stage_table
from stream_odml.cli.producer import Category
from stream_odml.cli.versions_table import stage_rows
from stream_odml.client import Client, ClientError
from stream_odml.cluster.session import Session, run_stream
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store

SHARD_IMAGES = 1000
ASK_EVERY_S = 0.2


@dataclass(frozen=True)
class Task:
    """Categories that arrive together."""

    name: str
    categories: list[Category]


def plan_tasks(data: Path, plan: str, most: int | None) -> list[Task]:
    """The tasks of ``plan`` over a Parquet file of the benchmark schema, the base first; at most ``most``."""
    table = pq.read_table(data)
    columns = (table[c].to_pylist() for c in ("class_name", "split", "image"))
    images: dict[tuple[str, str], list[bytes]] = {}
    for name, split, image in zip(*columns, strict=True):
        images.setdefault((name, "" if plan != "alphabets" else split), []).append(image)
    categories = [(Category(name, found), split) for (name, split), found in images.items()]
    tasks = _by_alphabet(categories) if plan == "alphabets" else _by_number([c for c, _ in categories], plan)
    return tasks[:most]


def _by_alphabet(categories: list[tuple[Category, str]]) -> list[Task]:
    base = Task("background", [c for c, split in categories if split == "background"])
    later: dict[str, list[Category]] = {}
    for category, split in categories:
        if split != "background":
            later.setdefault(category.name.split("/")[0], []).append(category)
    return [base, *(Task(name, found) for name, found in sorted(later.items()))]


def _by_number(categories: list[Category], plan: str) -> list[Task]:
    match = re.fullmatch(r"(\d+)\+(\d+)x(\d+)", plan)
    if match is None:
        raise ValueError(f"plan {plan!r}: expected `alphabets`, or base+tasksxclasses like 62+4x10")
    base, count, each = map(int, match.groups())
    if base + count * each > len(categories):
        raise ValueError(f"plan {plan} needs {base + count * each} classes, the file has {len(categories)}")
    cuts = [base + i * each for i in range(count)]
    return [Task("base", categories[:base])] + [
        Task(f"task{i + 1}", categories[cut : cut + each]) for i, cut in enumerate(cuts)
    ]


def land_task(inbox: str, task: Task) -> None:
    """Land a task in shards of a thousand images, and then say that it is complete."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", task.name)
    items = [
        NewItem(image, category.name, item_id=f"{category.name}/{i}")
        for category in task.categories
        for i, image in enumerate(category.images)
    ]
    shards = [
        land_items(inbox, f"{name}-{number:04d}", items[start : start + SHARD_IMAGES])
        for number, start in enumerate(range(0, len(items), SHARD_IMAGES))
    ]
    complete_task(inbox, name, shards)


class Asker:
    """Asks for random images of landed tasks, all the time."""

    def __init__(self, url: str) -> None:
        self.ok = self.failed = 0
        self.images: list[bytes] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        number = 0
        with Client(self._url, retries=0) as client:
            while not self._stop.wait(ASK_EVERY_S):
                if self.images:
                    number += 1
                    with contextlib.suppress(ClientError):
                        client.search_image(self.images[number * 7919 % len(self.images)], k=5)
                        self.ok += 1
                        continue
                    self.failed += 1


def stream_config(arguments: argparse.Namespace, root: str, seed: int) -> StreamConfig:
    """The stream of this benchmark; every number that the arguments do not set is a default."""
    backbone = "mobilenetv2" if arguments.weights else "conv4"
    learning: dict[str, Any] = {
        "base_steps": arguments.base_steps,
        "stage_steps": arguments.stage_steps,
        "classes_per_batch": 12,
        "images_per_class": 4,
    }
    if arguments.weights:
        learning |= {"augment_flip": True}
    return parse_config(
        {
            "name": "benchmark",
            "root": root,
            "seed": seed,
            "model": {
                "backbone": backbone,
                "weights": str(arguments.weights.absolute()) if arguments.weights else None,
                "dim": 128,
                "image_size": arguments.image_size,
            },
            "learning": learning,
            "boundary": {"new_classes": None, "images": None, "age_s": None},
            "evaluation": {"held_out": 0.4, "max_per_class": 8},
            "service": {"port": 0},
            "metrics": {"port": 0},
        }
    )


def run(
    arguments: argparse.Namespace, seed: int, console: Console
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One stream; the row of every version and what the client saw."""
    tasks = plan_tasks(arguments.data, arguments.plan, 3 if arguments.quick else None)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        with console.status("starting"):
            session = stack.enter_context(run_stream(stream_config(arguments, f"{folder}/root", seed)))
        asker = stack.enter_context(Asker(session.endpoints.service))
        began = time.monotonic()
        for done, task in enumerate(tasks):
            land_task(inbox_path(session.config), task)
            asker.images += [category.images[0] for category in task.categories]
            _wait(session, done + 1, f"{task.name} ({done + 1} of {len(tasks)})", console, asker)
        store = Store.open(session.config.root)
        names = {f"task-{number:04d}": task.name for number, task in enumerate(tasks, 1)}
        rows = [{**row, "name": names[row["task"]]} for row in stage_rows(store)]
        console.print(stage_table(rows))
        seen = {"queries_ok": asker.ok, "queries_failed": asker.failed, "wall_s": time.monotonic() - began}
        return rows, {name: float(value) for name, value in seen.items()}


def _wait(session: Session, versions: int, title: str, console: Console, asker: Asker) -> None:
    """Until so many tasks are learnt or skipped."""
    store = Store.open(session.config.root)
    with StreamView(console, title) as view:
        while True:
            store.refresh()
            settled = len(store.tree.learnt())
            settled += sum(task.skipped is not None for task in store.ledger.tasks.values())
            if settled >= versions:
                return
            with contextlib.suppress(Exception):  # a restarting driver: the picture stays
                view.show(session.status(), {"ok": asker.ok, "failed": asker.failed})
            time.sleep(0.5)


def main() -> None:
    """Run the plan once for each seed and write `stream-<data>.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet file with image, class_name, split")
    parser.add_argument("--plan", default="alphabets")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 weights; without them a small conv net")
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--base-steps", type=int, default=400)
    parser.add_argument("--stage-steps", type=int, default=80)
    common_arguments(parser)
    arguments = parser.parse_args()
    console = Console()
    report = Report.begin(f"stream-{arguments.data.stem}", arguments)
    for seed in report.seeds:
        rows, figures = run(arguments, seed, console)
        report.rows += [{**row, "seed": seed} for row in rows]
        report.figures |= figures
        last = rows[-1]
        report.figures |= {
            name: float(last[key])
            for name, key in (
                ("last_r1_mapped", "union_served"),
                ("last_r1_reextracted", "union_reextracted"),
                ("last_r1_stale", "union_stale"),
                ("forgetting", "forgetting"),
            )
            if last[key] is not None
        }
        report.write()


if __name__ == "__main__":
    main()
