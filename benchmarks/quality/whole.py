"""The whole study by one command: what it is made of, what is left of it, and about how long that takes.

python -m benchmarks.quality study --data FOLDER --weights FILE [--dry-run] [--only NAME,...] [--sealed]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.quality.arguments import count, parser, plan, seed_list
from benchmarks.quality.jobs import jobs_of, run_jobs
from benchmarks.quality.left import left_of, speed_of
from benchmarks.quality.parts import PARTS, Part
from benchmarks.quality.rows import RowFile
from stream_odml.learn.memory import keep_freed_memory


def study_parser() -> argparse.ArgumentParser:
    """Return the command line of the whole study."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.quality study",
        description="Run every part of the study that is not measured yet, then write its reports. Killed and started "
        "again it goes on after the last stage that was measured.",
    )  # fmt: skip
    p.add_argument("--data", type=Path, required=True, help="folder with flowers102.parquet and the others")
    p.add_argument("--weights", type=Path, help="safetensors of MobileNetV2; parts of photographs need it")
    p.add_argument("--only", help="names of parts, between commas; default: all but the sealed one")
    p.add_argument("--sealed", action="store_true", help="also the stream that no choice has seen, last")
    p.add_argument(
        "--dry-run", action="store_true", help="list what would run, and about how long; run nothing"
    )
    p.add_argument("--seeds", type=_seeds, help="other seeds than those of each part, such as 0,1")
    p.add_argument("--select", choices=("validation", "test"), default="test")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--work", type=Path, help="caches and unfinished runs; default: OUT/.quality")
    p.add_argument("--threads", type=count, default=1, help="of each process")
    p.add_argument("--jobs", type=_at_least_one, default=1, help="processes side by side; of one core each")
    p.add_argument(
        "--minutes", type=_minutes, default=0.0, help="stop after so many, and write no report; default: none"
    )
    p.add_argument("--device", default="cpu")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument(
        "--commit", help="count rows as made at this commit; default: the last that changed learning"
    )
    return p  # fmt: skip


def _seeds(text: str) -> str:
    return ",".join(map(str, seed_list(text)))


def _at_least_one(text: str) -> int:
    if not (processes := count(text)):
        raise argparse.ArgumentTypeError("0: expected 1 or more")
    return processes


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected minutes, 0 or more; 0: no limit")
    return minutes


def chosen_parts(args: argparse.Namespace) -> list[Part]:
    """Return the parts that are asked for, sealed ones last. ValueError for a name that is none, for a sealed part
    without --sealed, and for photographs without weights."""
    unasked = [part.name for part in PARTS if args.sealed or not part.sealed]
    wanted = args.only.split(",") if args.only else unasked
    by_name = {part.name: part for part in PARTS}
    if unknown := sorted(set(wanted) - set(by_name)):
        raise ValueError(f"--only {unknown[0]}; expected one of {', '.join(by_name)}")
    chosen = sorted((by_name[name] for name in dict.fromkeys(wanted)), key=lambda part: part.sealed)
    for part in chosen:
        if part.sealed and not args.sealed:
            raise ValueError(
                f"{part.name} is sealed: it is measured once, after all choices; name --sealed with it"
            )
        if part.is_of_photographs and args.weights is None:
            raise ValueError(f"{part.name} starts from pretrained weights; name their file with --weights")
    return chosen


def run_study(args: argparse.Namespace, run: Callable[[list[str]], None]) -> None:
    """Run what is left of each part and write its report, or with --dry-run list it. `run`: do what the words of a part
    ask for."""
    keep_freed_memory()  # as runs do, whose speed is guessed
    chosen = chosen_parts(args)
    console = Console(stderr=not args.dry_run)
    _list_what_is_left(chosen, args, console)
    if args.dry_run:
        return
    if args.jobs > 1 or args.minutes:
        _run_side_by_side(chosen, args, console)
    for at, part in enumerate(chosen, 1):
        console.print(f"part {at} of {len(chosen)}: {part.name}")
        run(part.argv(args))


def _list_what_is_left(chosen: list[Part], args: argparse.Namespace, console: Console) -> None:
    # Narrow, so that no name is cut off where the output is no terminal.
    table = Table("part", "method", "seeds", "done", "minutes", pad_edge=False)
    total, listed = 0.0, set[str]()
    for part in chosen:
        study, methods, seeds = plan(parser().parse_args(part.argv(args)))
        rows = RowFile(study.rows.path).read()
        base_seeds: set[int] = set()
        for left in left_of(study, methods, seeds, rows, listed):
            base_seeds |= set(left.seeds)
            if left.seeds:
                seeds_left = ",".join(map(str, left.seeds))
                table.add_row(part.name, left.method, seeds_left, str(left.done), f"{left.seconds / 60:.1f}")
            total += left.seconds
        keys = {seed: study.key(None, seed) for seed in base_seeds}
        bases = [
            s for s in base_seeds if keys[s] not in listed and not (study.work / f"base-{keys[s]}").exists()
        ]
        listed |= set(keys.values())
        if bases:
            seconds = len(bases) * study.common.base_steps * speed_of(study).step_s
            table.add_row(
                part.name, "(base stage)", ",".join(map(str, sorted(bases))), "", f"{seconds / 60:.1f}"
            )
            total += seconds
    console.print(table if table.row_count else "Everything is measured.")
    console.print(
        f"Seeds that are left, seeds that are done, minutes of one core. In all about {total / 3600:.1f} hours."
    )


def _run_side_by_side(chosen: list[Part], args: argparse.Namespace, console: Console) -> None:
    """Run the jobs of all parts, first seeds first, so that a limit of time leaves whole seeds. SystemExit where it
    left some, with the rows of the others on disk."""
    until = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    most = max(len((args.seeds or part.seeds).split(",")) for part in chosen)
    listed: set[str] = set()
    jobs = [
        job
        for number in range(most)
        for part in chosen
        for job in jobs_of(part.name, part.argv(args), number, listed)
    ]
    problems = run_jobs(jobs, args.jobs, until, args.threads, console)
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(jobs)} jobs are not done ({problems[0]}); start again to go on"
        )
