"""The whole study by one command: what it is made of, what is left of it, and about how long that takes.

python -m benchmarks.quality study --data FOLDER --weights FILE [--dry-run] [--only NAME,...] [--sealed]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.quality.arguments import parser, plan
from benchmarks.quality.jobs import jobs_of, run_jobs
from benchmarks.quality.left import left_of, speed_of
from benchmarks.quality.map_rivals import MAPS
from benchmarks.quality.rows import RowFile
from stream_odml.learn.memory import keep_freed_memory

_PHOTOGRAPHS = (
    "--backbone", "mobilenetv2", "--image-size", "96", "--set", "augment_flip=true", "--set",
    "classes_per_batch=10", "--set", "images_per_class=4", "--base-steps", "150", "--steps", "40",
)  # fmt: skip
_JOINT = "joint=joint:stage_steps={steps},joint_exact=joint_exact:stage_steps={steps}"
"""Three times the steps of all others, as validation chose."""
_HEADS = (
    "exact_frozen,exact_pretrained,ranpac=ranpac:width=2000:ridge=1e5,ranpac_logits=ranpac_logits:width=2000:ridge=1e5,"
    "ranpac_features=ranpac_features:width=2000:ridge=1e6,fecam,stored_head"
)
"""As validation chose them (STUDY.md)."""
_MAIN = f"ours,{_HEADS},distilled,finetune,frozen_f0,{_JOINT.format(steps=120)}"
_RIVALS = (
    "ours,l2_exact,relation_exact,finetune_exact,l2_tuned=l2:weight_distill=20,relation_tuned=relation:weight_old=1000,"
    f"fecd,l2,sdc_l2,{','.join(MAPS)},apr_l2=apr_l2:samples=30"
)
"""Those that move the trunk at every stage, or the gallery by a map of their own: far behind, and so of three seeds.
Of pseudo-replay a tenth of a task's images; all of them, as APR takes, cost ten times as much."""
_SMALL = f"ours,ours_backfill,{_HEADS},distilled,finetune"
"""Rivals that move the trunk are compared after a large base, where they lose less."""
_PARTS = (
    "exact_always,no_peer,no_virtual,backfill_no_peer=ours_backfill:weight_peer=0,"
    "backfill_no_virtual=ours_backfill:weight_virtual=0,"
    "always_no_peer=exact_always:weight_peer=0,always_no_virtual=exact_always:weight_virtual=0,"
    "always_no_relation=exact_always:weight_old=0,always_no_hold=exact_always:weight_hold=0,"
    "always_no_composites=exact_always:weight_composites=0:map_composites=0,"
    "always_no_average=exact_always:old_share=0"
)
"""What is taken away, one at a time, where a trunk moves: on the fewest base classes, where it may matter."""
_LONGER = "ours,ours_backfill,exact_always"
_LONG = f"{_LONGER},exact_frozen,faithful=faithful:learning_rate=1e-5"
_DRAWINGS = "ours,exact_frozen,ranpac,ranpac_logits,fecam,stored_head,distilled,finetune,frozen_f0"
"""RanPAC with its defaults: nothing was tuned on drawings."""


@dataclass(frozen=True)
class Part:
    """One stream with its methods: a call of the command with more words."""

    name: str
    data: str
    protocol: str
    methods: str
    words: tuple[str, ...]
    seeds: str = "0,1,2,3,4"
    sealed: bool = False

    @property
    def is_of_photographs(self) -> bool:
        return "mobilenetv2" in self.words

    def argv(self, args: argparse.Namespace) -> list[str]:
        """Return the words of the command that runs this part."""
        weights = ["--weights", str(args.weights)] if self.is_of_photographs else []
        return [
            "--data", str(args.data / f"{self.data}.parquet"), "--protocol", self.protocol, "--methods", self.methods,
            "--seeds", args.seeds or self.seeds, "--select", args.select, "--name", self.name, "--out", str(args.out),
            *(["--work", str(args.work)] if args.work else []), *(["--commit", args.commit] if args.commit else []),
            *self.words, *weights, "--threads", str(args.threads), "--device", args.device,
            "--precision", args.precision,
        ]  # fmt: skip


PARTS = (
    Part("quality-flowers102", "flowers102", "62+4*10", _MAIN, _PHOTOGRAPHS),
    Part("quality-grocery81", "grocery81", "41+4*10", _MAIN, _PHOTOGRAPHS),
    Part("quality-flowers102-rivals", "flowers102", "62+4*10", f"{_RIVALS},no_peer,no_virtual", _PHOTOGRAPHS, "0,1,2"),
    Part("quality-grocery81-rivals", "grocery81", "41+4*10", f"{_RIVALS},no_peer,no_virtual", _PHOTOGRAPHS, "0,1,2"),
    Part("quality-flowers102-small", "flowers102", "12+9*10", _SMALL, _PHOTOGRAPHS),
    Part("quality-grocery81-small", "grocery81", "11+7*10", _SMALL, _PHOTOGRAPHS),
    Part("quality-flowers102-parts", "flowers102", "12+9*10", _PARTS, _PHOTOGRAPHS, "0,1,2"),
    Part("quality-flowers102-200", "flowers102", "12+9*10", _LONGER, (*_PHOTOGRAPHS[:-1], "200"), "0"),
    Part("quality-flowers102-1000", "flowers102", "12+3*30", _LONG, (*_PHOTOGRAPHS[:-1], "1000"), "0"),
    Part("quality-flowers102-blurry", "flowers102", "blurry:62+4*10", f"ours,{_HEADS},distilled", _PHOTOGRAPHS),
    Part("quality-flowers102-repeat", "flowers102", "repeat:62+4*10", f"ours,{_HEADS},distilled", _PHOTOGRAPHS),
    Part("quality-omniglot-400", "omniglot", "400+6*100", f"{_DRAWINGS},{_JOINT.format(steps=300)}",
         ("--base-steps", "1500", "--steps", "100")),
    Part("quality-omniglot-rivals", "omniglot", "400+6*100", f"{_RIVALS},adc_l2=adc_l2:samples=30",
         ("--base-steps", "1500", "--steps", "100"), "0,1,2"),
    Part("quality-alphabets", "omniglot", "alphabets:10*20", f"{_DRAWINGS},{_JOINT.format(steps=120)}",
         ("--base-steps", "1500", "--steps", "40")),
    Part("quality-alphabets-small", "omniglot", "alphabets:3*20", "ours,ours_backfill,exact_frozen,distilled",
         ("--base-steps", "1500", "--steps", "40")),
    Part("quality-alphabets-long", "omniglot", "alphabets:1*49", "ours,exact_frozen,distilled",
         ("--base-steps", "600", "--steps", "40"), "0"),
    Part("quality-omniglot-thousand", "omniglot", "400+10*100", "ours,exact_frozen,distilled",
         ("--base-steps", "1500", "--steps", "40")),
    Part("quality-caltech101", "caltech101", "50+5*10", _MAIN, _PHOTOGRAPHS, sealed=True),
    Part("quality-caltech101-rivals", "caltech101", "50+5*10", _RIVALS, _PHOTOGRAPHS, "0,1,2", sealed=True),
)  # fmt: skip
"""In the order in which they run. The sealed stream is the last: no choice may rest on it."""


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
    p.add_argument("--seeds", help="other seeds than those of each part, such as 0,1")
    p.add_argument("--select", choices=("validation", "test"), default="test")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--work", type=Path, help="caches and unfinished runs; default: OUT/.quality")
    p.add_argument("--threads", type=int, default=1, help="of each process")
    p.add_argument("--jobs", type=int, default=1, help="processes side by side; of one core each")
    p.add_argument(
        "--minutes", type=float, default=0.0, help="stop after so many, and write no report; default: none"
    )
    p.add_argument("--device", default="cpu")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument(
        "--commit", help="count rows as made at this commit; default: the last that changed learning"
    )
    return p  # fmt: skip


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
    jobs = [
        job
        for number in range(most)
        for part in chosen
        for job in jobs_of(part.name, part.argv(args), number)
    ]
    problems = run_jobs(jobs, args.jobs, until, args.threads, console)
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(jobs)} jobs are not done ({problems[0]}); start again to go on"
        )
