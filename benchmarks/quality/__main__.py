"""The command of the study, see `arguments.DESCRIPTION`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.quality.arguments import parser, plan
from benchmarks.quality.data import ImageSet
from benchmarks.quality.methods import NEEDS_WEIGHTS, Method
from benchmarks.quality.moving import run_of
from benchmarks.quality.protocols import Stream
from benchmarks.quality.report import write_report
from benchmarks.quality.rows import Row
from benchmarks.quality.study import Study
from benchmarks.quality.whole import run_study, study_parser
from stream_odml.learn.memory import keep_freed_memory

_OF_A_RESULT = (
    "data",
    "protocol",
    "select",
    "method",
    "seed",
    "stage",
    "split",
    "gallery",
    "metric",
    "value",
)
"""Columns that the rows of a result have."""


def main() -> None:
    """Runs what is missing, then writes the report of all that there is. What cannot be done is told in one line."""
    try:
        if sys.argv[1:2] == ["study"]:
            run_study(
                study_parser().parse_args(sys.argv[2:]),
                lambda words: _run(parser().parse_args(words)),
            )
        else:
            _run(parser().parse_args())
    except (ValueError, OSError) as error:
        raise SystemExit(f"python -m benchmarks.quality: {error}") from error


def _run(args: argparse.Namespace) -> None:
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    study, methods, seeds = plan(args)
    name = args.name or f"quality-{study.images.name}"
    if Path(name).name != name:
        raise ValueError(f"--name {name!r}; expected a file name, and the folder in --out")
    args.out.mkdir(parents=True, exist_ok=True)
    # What cannot be is told before hours are spent.
    streams = [study.stream(seed) for seed in seeds]
    for stream in streams:
        _check_tasks(stream, study.images, methods)
    shown, found = [method.name for method in methods], list[Row]()
    for text in args.beside:
        earlier, more = beside(text, study, seeds)
        if twice := set(shown) & set(earlier):
            raise ValueError(f"--beside {text}: {', '.join(sorted(twice))} would be there twice")
        shown += earlier
        found += more
    todo = [(seed, method) for seed in seeds for method in methods]
    if not args.report_only:
        run_all(study, todo, name)
    names = {study.key(method, seed): method.name for seed, method in todo}
    rows = [{**row, "method": names[row["run"]]} for row in study.rows.read() if row["run"] in names]
    if not rows:
        raise ValueError(
            f"{study.rows.path} has nothing of these methods, seeds and settings at commit {study.commit}; "
            "run without --report-only, or name the commit that was measured with --commit"
        )
    title = f"{study.images.name}, {study.protocol}"
    remark = _unmeasured(study.images, streams[0])
    print(write_report(args.out, name, title, [*rows, *found], shown, seeds, study.quick, remark))


def _check_tasks(stream: Stream, images: ImageSet, methods: Sequence[Method]) -> None:
    """Raise ValueError for a task of one class that a method would train on alone."""
    if all(method.preset in NEEDS_WEIGHTS for method in methods):
        return  # not one takes a step
    later = [method.name for method in methods if method.trains_on_each_task]
    for t, task in enumerate(stream.tasks if later else stream.tasks[:1]):
        if len(classes := np.unique(images.labels[task.images])) < 2:
            who = f" (here {', '.join(later)})" if t else ""
            raise ValueError(
                f"all images of task {t} are of one class, {images.class_names[int(classes[0])]!r}, and a method that "
                f"trains on it{who} needs two; ask for larger tasks{', or leave these methods out' if t else ''}"
            )


def beside(text: str, study: Study, seeds: list[int]) -> tuple[list[str], list[Row]]:
    """Return names and rows of methods of an earlier result: of this stream, these images and these seeds alone.
    ValueError for words that are not FILE:NAME, for a file that is no result, and for methods that it has not."""
    path, _, wanted = text.rpartition(":")
    if not path or not wanted:
        raise ValueError(
            f"--beside {text!r}: expected FILE:NAME, or FILE:NAME=EARLIER, several between commas"
        )
    pairs = [part.split("=", 1) for part in wanted.split(",")]
    names = {pair[-1]: pair[0] for pair in pairs}
    stream = {"data": study.images.name, "protocol": study.protocol, "select": study.select}
    rows = [
        {**row, "method": names[row["method"]]}
        for row in _result_rows(path)
        if row["method"] in names and row["seed"] in seeds and stream.items() <= row.items()
    ]
    if missing := set(names.values()) - {row["method"] for row in rows}:
        raise ValueError(f"{path} has nothing of {', '.join(sorted(missing))} on {stream}")
    return list(names.values()), rows


def _result_rows(path: str) -> list[Row]:
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--beside {path}: cannot be read as Parquet ({reason}); expected the .parquet file of an earlier result"
        ) from error
    if missing := set(_OF_A_RESULT) - set(table.column_names):
        raise ValueError(
            f"--beside {path}: has no column {' and no column '.join(sorted(missing))}; expected the .parquet file of "
            "an earlier result of this command"
        )
    rows: list[Row] = table.to_pylist()
    return rows


def _unmeasured(images: ImageSet, stream: Stream) -> str:
    shown = np.unique(images.labels[np.concatenate([task.images for task in stream.tasks])])
    counts = np.bincount(images.labels[stream.measured], minlength=len(images.class_names))
    few = int((counts[shown] < 2).sum())
    return f"{few} of {len(shown)} classes have too few images to be measured." if few else ""


def run_all(study: Study, todo: list[tuple[int, Method]], name: str) -> None:
    """Every run that has not finished, under a progress bar."""
    finished = study.rows.finished()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        runs, steps = bar.add_task(name, total=len(todo)), bar.add_task("", total=None)

        def tick(what: str, done: int, total: int) -> None:
            bar.update(steps, description=what, completed=done, total=total)

        for seed, method in todo:
            if study.key(method, seed) not in finished:
                run_of(study, method, seed, tick).go()
            bar.advance(runs)


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["benchmarks.quality.jobs"])
    main()
