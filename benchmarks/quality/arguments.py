"""The words of the command line, and the study, methods and seeds that they ask for."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.quality.data import load_images
from benchmarks.quality.methods import NEEDS_WEIGHTS, Method, all_names, apply_changes, parse_methods
from benchmarks.quality.rows import RowFile, learning_commit
from benchmarks.quality.study import Study
from stream_odml.learn.settings import PRETRAINED, EmbedderSpec, StageSettings

DESCRIPTION = """python -m benchmarks.quality --data X.parquet --protocol 400+6*100 --methods ours,l2 --seeds 0,1,2
python -m benchmarks.quality study --data FOLDER --weights FILE --dry-run     # all parts of the study, see its --help

Killed and started again with the same words it goes on after the last stage that was measured.
"""

MAX_SEED = 2**31 - 1
"""Every generator that a seed reaches takes it, also one with a few bits more."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--data", type=Path, required=True, help="Parquet with columns image and class_name")
    p.add_argument("--protocol", default="400+6*100", help="base+k*n, alphabets[:b[*s]], repeat:…, blurry:…")
    p.add_argument(
        "--methods",
        help="names, or NAME=PRESET:field=value:…; default: every one that needs no pretrained weights, and with "
        "--weights or --pretrained every one",
    )
    p.add_argument("--seeds", type=seed_list, default=[0], help="comma-separated; --seed is the same")
    p.add_argument("--seed", dest="seeds", type=seed_list, help=argparse.SUPPRESS)
    p.add_argument("--backbone", default="conv4")
    p.add_argument("--weights", help="safetensors with the backbone's pretrained weights")
    p.add_argument("--pretrained", action="store_true", help="weights by the backbone's name")
    p.add_argument("--dim", type=int, default=128)
    p.add_argument("--image-size", type=int, default=28)
    p.add_argument("--base-steps", type=int, default=600)
    p.add_argument("--steps", type=int, default=200, help="of each later stage, for every method")
    p.add_argument(
        "--set", action="append", default=[], help="field=value of StageSettings, for every method"
    )
    p.add_argument("--select", choices=("validation", "test"), default="validation")
    p.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="FILE:NAME[=EARLIER],...",
        help="add methods of an earlier result (.parquet) of the same stream, by the name that they had there",
    )
    p.add_argument("--name", help="of the result; default: quality-<data>")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    p.add_argument("--work", type=Path, help="caches and unfinished runs; default: OUT/.quality")
    p.add_argument("--device", default="cpu")
    p.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of all networks; bf16 is autocast"
    )
    p.add_argument("--threads", type=count, default=0, help="0: as torch likes")
    p.add_argument(
        "--oracle", action="store_true", help="a gallery too, moved by maps fitted with images of old classes"
    )
    p.add_argument("--quick", action="store_true", help="an eighth of the steps: for a look, not a claim")
    p.add_argument("--report-only", action="store_true", help="of what has been measured so far, run nothing")
    p.add_argument(
        "--commit", help="count rows as made at this commit; default: the last that changed learning"
    )
    return p


def plan(args: argparse.Namespace) -> tuple[Study, list[Method], list[int]]:
    """What the command line asks for."""
    shrink = 8 if args.quick else 1
    common = StageSettings(base_steps=-(-args.base_steps // shrink), stage_steps=-(-args.steps // shrink))
    spec = EmbedderSpec(
        args.backbone, args.dim, args.image_size, weights=args.weights, pretrained=args.pretrained
    )
    if spec.starts_pretrained:
        common = replace(common, **PRETRAINED)
    if args.precision != "fp32":
        common = replace(common, precision=args.precision, old_precision=args.precision)
    common = apply_changes(common, args.set)
    possible = [name for name in all_names() if spec.starts_pretrained or name not in NEEDS_WEIGHTS]
    methods = parse_methods(",".join(possible) if args.methods is None else args.methods, common)
    if not spec.starts_pretrained:
        asked = [method.name for method in methods if method.preset in NEEDS_WEIGHTS]
        if asked:
            raise ValueError(
                f"{' and '.join(asked)} need pretrained weights: name them with --weights or --pretrained, "
                "or leave these methods out of --methods"
            )
    work = args.work or args.out / ".quality"
    weights = hashlib.sha256(Path(args.weights).read_bytes()).hexdigest()[:16] if args.weights else None
    study = Study(
        load_images(args.data, args.image_size, work), args.protocol, args.select, spec, common, work,
        RowFile(work / "rows.jsonl"), args.commit or learning_commit(), args.quick,
        args.device if args.report_only else _device(args.device),
        args.oracle, weights,
    )  # fmt: skip
    return study, methods, args.seeds


def seed_list(text: str) -> list[int]:
    """Return the seeds between commas, each once. ArgumentTypeError for anything but numbers from 0 to MAX_SEED."""
    try:
        seeds = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        seeds = [-1]
    if not 0 <= min(seeds) <= max(seeds) <= MAX_SEED:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected whole numbers from 0 to {MAX_SEED} between commas, such as 0,1,2"
        )
    return seeds


def count(text: str) -> int:
    """Return a whole number of 0 or more; ArgumentTypeError for another text."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 0 or more")
    return int(text)


def _device(name: str) -> str:
    """As it was given, if torch can use it here."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return name
