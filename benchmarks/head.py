"""The discriminant head, measured: solved anew from sums, a gallery that follows it, and what leaves it as it was.

    python -m benchmarks.head
    python -m benchmarks.head --only exact stored

Parts: `fast` (sums, choice and solution of 100k items), `stage` (a whole fast stage of as many), `reproject` (a
million stored features in a process of its own), `exact` (orders, ranks, erasure), `stored` (8 bits, and vectors of
older heads, on features of real data: of flowers102.parquet and MobileNetV2's weights in the folder that
STREAM_ODML_DATA names; left out without them), `running` (a stream that learns heads while its trunk is trained).
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Report, common_arguments
from benchmarks.made_root import BLOCK, SHARD, D, land, made_features, new_root, watched
from benchmarks.quality.data import load_images
from benchmarks.quality.protocols import build_stream
from benchmarks.running import measure_running
from stream_odml.config.stream import parse_config
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings, solve_head
from stream_odml.learn.embedder import build_embedder, embed
from stream_odml.learn.evaluation import Retrieval, recall_at_k
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.head_choice import choose_head, sample_rows
from stream_odml.learn.lift import Lift
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.fast_stage import fast_stage
from stream_odml.pipeline.stages import Stages
from stream_odml.pipeline.sums_ahead import SumsAhead
from stream_odml.store.store import Store

WIDTH, CLASSES, HELD_OUT = 2048, 1000, 0.02
NO_BOUNDARY = {"new_classes": None, "images": None, "age_s": None}
DATA, PROTOCOL = "flowers102.parquet", "62+4*10"
WEIGHTS = "mobilenetv2_100_coral_ptq.safetensors"


def measure_fast(report: Report, seed: int) -> None:
    """From stored features of a closed task to the head that serves: sums, choice of settings, solution. Without the
    sums, which can be kept up while items land, it is the figure `from_sums`."""
    n = 10_000 if report.quick else 100_000
    features, names = made_features(n, CLASSES, seed)
    keys = [str(row) for row in range(n)]
    for name, width in (("fast_stage", 0), ("fast_stage_lifted", WIDTH)):
        cpu, start = time.process_time(), time.perf_counter()
        sums = ClassSums.of(Lift(D, width), features, names)
        summed = time.perf_counter()
        rows = sample_rows(keys, names)
        settings = choose_head(
            sums, features[rows], [names[row] for row in rows.tolist()], HeadSettings(width=width)
        )
        chosen = time.perf_counter()
        head = solve_head(sums, settings)
        done = time.perf_counter()
        report.row(
            part="fast", n=n, width=width, classes=CLASSES, sums_s=summed - start, choice_s=chosen - summed,
            solve_s=done - chosen, cpu_s=time.process_time() - cpu, dim=head.known_dim, load=os.getloadavg()[0],
        )  # fmt: skip
        report.figure(f"{name}_s_100k_1280", done - start)
        report.figure(f"{name}_from_sums_s_100k_1280", done - summed)


def measure_reproject(report: Report, seed: int) -> None:
    """Seconds, and memory beside the searcher's vectors, for a million stored features to follow a new head."""
    n = 50_000 if report.quick else 1_000_000
    features, names = made_features(50_000, CLASSES, seed)
    head = solve_head(ClassSums.of(Lift(D), features, names))
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "codes.npy"
        codes = np.lib.format.open_memmap(at, mode="w+", dtype=np.int8, shape=(n, D))
        for start in range(0, n, len(features)):
            codes[start : start + len(features)] = features.codes_nD
        codes.flush()
        del codes
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        reader = multiprocessing.get_context("spawn").Process(
            target=_reproject, args=(at, head.to_bytes(), theirs)
        )
        reader.start()
        found: dict[str, float] = ours.recv()
        reader.join(timeout=60)
    report.row(part="reproject", n=n, dim=head.known_dim, load=os.getloadavg()[0], **found)
    report.figure("reproject_1m_1280_s", found["seconds"])
    report.figure("reproject_extra_gib", found["extra_gib"])


def _reproject(at: Path, head_bytes: bytes, link: Connection) -> None:
    """What a replica does: the old searcher's vectors stay until the new ones are whole."""
    head = DiscriminantHead.from_bytes(head_bytes)
    codes = np.load(at, mmap_mode="r")
    scale = np.ones(len(codes), np.float32)
    old = np.ones((len(codes), head.known_dim), np.float32)  # the searcher in use
    head.known_part(FeatureCodes(codes[:16], scale[:16]))
    new = np.empty_like(old)

    def project() -> None:
        for row in range(0, len(codes), BLOCK):
            rows = slice(row, row + BLOCK)
            new[rows] = head.known_part(FeatureCodes(np.ascontiguousarray(codes[rows]), scale[rows]))

    cpu = time.process_time()
    seconds, extra, _ = watched(project)
    link.send({"seconds": seconds, "cpu_s": time.process_time() - cpu, "extra_gib": extra})


def measure_stage(report: Report, seed: int) -> None:
    """The whole of a fast stage, as the solver runs it: from an order to sums, head and figures in the store. A task of
    so many items beside a fifth as many that were learnt; with its items summed while they waited or not, with
    settings that are chosen again or not. Committing and serving come after it (`benchmarks.follow`)."""
    n = 4_000 if report.quick else 100_000
    for name, width in (("stage", 0), ("stage_lifted", 256 if report.quick else WIDTH)):
        with tempfile.TemporaryDirectory() as folder:
            for row in _stages(f"{folder}/root", n, width, seed):
                report.row(part="stage", n=n, width=width, load=os.getloadavg()[0], **row)
                report.figure(f"{name}{row['how']}_s_100k_1280", row["seconds"])


def _stages(root: str, n: int, width: int, seed: int) -> Iterator[dict[str, Any]]:
    lift = Lift(D, width)
    writer = new_root(root, lift)
    features, names = made_features(n + n // 5, CLASSES, seed)
    config = parse_config(
        {
            "root": root,
            "method": "ours",
            "model": {"lift": width},
            "evaluation": {"held_out": HELD_OUT},
            "boundary": NO_BOUNDARY,
            "gate": {"enabled": False},
        }
    )
    stages = Stages(writer, config.boundary, 1, learns_trunk=False)
    try:
        tasks: list[list[str]] = [[], []]
        for at in range(0, len(names), SHARD):
            task, shard = int(at >= n // 5), f"shard-{at:07d}"
            land(writer, shard, features[at : at + SHARD], names[at : at + SHARD], HELD_OUT)
            tasks[task].append(shard)
        writer.close_task("task-0001", tasks[0], "benchmark")
        first = stages.solve_next()
        assert first is not None
        stages.commit(fast_stage(Store.open(root), first, config))
        ahead = SumsAhead()
        store = Store.open(root)
        while ahead.add(store, lift):
            pass
        writer.close_task("task-0002", tasks[1], "benchmark")
        order = stages.solve_next()
        assert order is not None
        keeps = config.model_copy(update={"learning": replace(config.learning, choice_growth=100.0)})
        for how, kept, setting in (
            ("", copy.copy(ahead), config),
            ("_reused", copy.copy(ahead), keeps),
            ("_nothing_ahead", SumsAhead(), config),
        ):
            store = Store.open(root)
            cpu, start = time.process_time(), time.perf_counter()
            result = fast_stage(store, order, setting, kept)
            assert result.refusal is None, result.refusal
            yield {"how": how, "seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    finally:
        writer.release()


def measure_exact(report: Report, seed: int) -> None:
    """Largest relative difference of the head over orders, over ranks, and after an erasure from one that never saw
    the items."""
    n = 3_000 if report.quick else 20_000
    features, names = made_features(n, 200, seed)
    random, lift = np.random.default_rng(seed), Lift(D)

    def sums_of(rows: NDArray[np.int64]) -> ClassSums:
        return ClassSums.of(lift, features[rows], [names[row] for row in rows.tolist()])

    whole, order = sums_of(np.arange(n)), random.permutation(n)
    head = solve_head(whole)
    tasks = [sums_of(np.flatnonzero(np.arange(n) % 200 // 40 == task)) for task in random.permutation(5)]
    ranks = [sums_of(part) for part in np.array_split(order, 4)]
    gone, left = order[: n // 10], order[n // 10 :]
    never = solve_head(sums_of(left))
    found = {
        "difference_over_orders": _difference(head, solve_head(ClassSums.empty(lift).plus(*tasks))),
        "difference_over_ranks": _difference(head, solve_head(ClassSums.empty(lift).plus(*ranks))),
        "difference_after_erasure": _difference(never, solve_head(whole.minus(sums_of(gone)))),
    }
    report.row(part="exact", n=n, **found)
    for name, value in found.items():
        report.figure(name, value)


def _difference(a: DiscriminantHead, b: DiscriminantHead) -> float:
    pairs = ((a.mean_E, b.mean_E), (a.known_dE, b.known_dE), (a.new_DD, b.new_DD))
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)


def measure_stored(report: Report, seed: int) -> None:
    """Recall@1 of test images by stored features and by floats; and of queries that a client keeps from the first head,
    against a gallery of the last one, beside fresh queries."""
    folder = os.environ.get("STREAM_ODML_DATA")
    if not folder:
        report.say("stored: left out, as STREAM_ODML_DATA names no folder")
        return
    images = load_images(Path(folder) / DATA, 96, report.out / ".quality")
    stream = build_stream(PROTOCOL, images.labels, images.class_names, seed, "test")
    spec = EmbedderSpec("mobilenetv2", 1280, 96, head="none", weights=str(Path(folder) / WEIGHTS))
    trunk = build_embedder(spec, seed)
    learnt = [task.images for task in stream.tasks]
    h_nD = embed(trunk, images.pixels[stream.measured])
    by_task = [encode(embed(trunk, images.pixels[rows])) for rows in learnt]
    label_n = images.labels[stream.measured]
    sums = [
        ClassSums.of(Lift(D), codes, [images.class_names[c] for c in images.labels[rows]])
        for codes, rows in zip(by_task, learnt, strict=True)
    ]
    first, last = solve_head(sums[0]), solve_head(sums[0].plus(*sums[1:]))
    gallery, own = last.known_part(encode(h_nD)), np.arange(len(h_nD))
    plain = last.split(last.embed(h_nD))[0]
    kept = last.split(last.embed(first.direction(first.embed(h_nD))))[0]

    def recall(queries: NDArray[np.float32], against: NDArray[np.float32]) -> float:
        return recall_at_k(Retrieval(queries, label_n, against, label_n, own), (1,))[1]

    found = {
        "by_codes": recall(plain, gallery),
        "by_floats": recall(plain, plain),
        "kept": recall(kept, gallery),
    }
    report.row(part="stored", data=DATA, protocol=PROTOCOL, seed=seed, queries=len(h_nD), **found)
    report.figure("stored_form_recall_loss", found["by_floats"] - found["by_codes"])
    report.figure("old_client_recall_ratio", found["kept"] / found["by_codes"])


PARTS = {
    "exact": measure_exact,
    "stored": measure_stored,
    "fast": measure_fast,
    "stage": measure_stage,
    "reproject": measure_reproject,
    "running": measure_running,
}


def main() -> None:
    """Measure and write `head.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    common_arguments(parser)
    arguments = parser.parse_args()
    report = Report.begin("head", arguments)
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    for part in arguments.only:
        report.say(part)
        PARTS[part](report, arguments.seeds[0])
    report.write(keep=len(arguments.only) < len(PARTS))


if __name__ == "__main__":
    main()
