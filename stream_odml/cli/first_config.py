"""The command `init`: a short configuration for images that a user has, every choice beside its reason."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from stream_odml.cli.own_images import OwnImages, first_image
from stream_odml.config.stream import parse_config
from stream_odml.storage.atomic import write_named

SMALL_SIDE = 48
"""Images up to this shorter side are taken for characters or icons, which a small net sees whole at 32 pixels."""
MIN_TO_MEASURE = 5
"""Images a class under which a held-out share leaves none to learn from, or measures nothing."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user has said; None leaves the choice to what the images are."""

    root: str | None = None
    backbone: str | None = None
    """`conv4`, `mobilenetv2`, `transformers:...`, `timm:...`, or a bare name or folder of transformers."""
    weights: Path | None = None
    image_size: int | None = None
    held_out: float | None = None
    new_classes: int | None = None
    gpus: int = 0


def write_config(path: Path, file: Path, seen: OwnImages, wishes: Wishes) -> str:
    """Write the configuration for the images at `path` to `file` and return its root. Raises ValueError, OSError."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(os.path.abspath(path)).stem).strip("-_")[:50] or "stream"
    root = wishes.root or f"{name}-stream"
    text = config_text(path, name, root, seen, wishes)
    parse_config(yaml.safe_load(text), str(file))
    write_named(file, lambda opened: opened.write(text.encode()))
    return root


def config_text(path: Path, name: str, root: str, seen: OwnImages, wishes: Wishes) -> str:
    """Return about twenty lines of YAML, commented."""
    backbone = _backbone(wishes)
    pretrained = wishes.weights is not None or ":" in backbone
    size = wishes.image_size or _image_size(backbone, seen.median_side)
    lines = [
        f"# {path}: {seen.in_words()}.",
        "# Keys that are left out have their defaults: `stream-odml config --example` prints every one.",
        f"name: {name}",
        f"root: {_scalar(root)}  # all state; what lands in its folder inbox/ is taken in",
        "model:",
        f"  backbone: {_scalar(backbone)}",
    ]
    if not pretrained:
        lines[-1] += "  # a small net that learns from nothing; for photographs name pretrained weights"
    elif wishes.weights is not None:
        lines.append(f"  weights: {_scalar(str(wishes.weights.absolute()))}")
    else:
        lines.append(
            "  pretrained: true  # the weights that the name stands for, loaded once at the first start"
        )
    lines += [
        f"  image_size: {size}  # side of the model's input, in pixels",
        "  head: discriminant  # solved from sums: a new class is learnt in seconds",
        *([] if pretrained else ["  lift: 2048"]),
        "learning:",
        "  trunk: frozen  # seconds a task; `auto` trains it at first and may again: better, minutes to hours"
        if pretrained
        else "  base_steps: 300  # of the first task, minutes on a CPU; a later head takes seconds",
    ]
    if wishes.gpus > 1:
        each = -(-16 // wishes.gpus) * wishes.gpus
        lines.append(f"  classes_per_batch: {each}  # a multiple of the workers")
    lines += [
        "boundary:  # when the images that wait are learnt: whichever comes first",
        f"  new_classes: {wishes.new_classes or max(2, min(10, len(seen.by_class) // 5))}",
        "  age_s: 600  # ten minutes after the oldest of them landed",
        "evaluation:",
        f"  held_out: {_held_out(seen, wishes)}",
        "ingest:",
        "  thumbnails: true  # small pictures for the page; off to keep no pixels",
    ]
    if wishes.gpus:
        lines += ["cluster:", f"  workers: {wishes.gpus}", "  gpus_per_worker: 1"]
    return "\n".join(lines) + "\n"


def _backbone(wishes: Wishes) -> str:
    if wishes.backbone is None:
        return "mobilenetv2" if wishes.weights is not None else "conv4"
    known = wishes.backbone in ("conv4", "mobilenetv2") or ":" in wishes.backbone
    if not known:
        return f"transformers:{wishes.backbone}"
    if wishes.weights is None and wishes.backbone == "mobilenetv2":
        raise ValueError(
            "mobilenetv2 from nothing needs far more images than most have: add --weights FILE.safetensors, or name "
            "a pretrained backbone, for example --backbone facebook/dinov2-small"
        )
    return wishes.backbone


def _image_size(backbone: str, median_side: int) -> int:
    if backbone == "conv4":
        return 32 if median_side <= SMALL_SIDE else 64
    return 96 if backbone == "mobilenetv2" else 224


def _held_out(seen: OwnImages, wishes: Wishes) -> str:
    typical = sorted(seen.by_class.values())[len(seen.by_class) // 2]
    share = wishes.held_out
    if share is None:
        share = 0.2 if typical >= MIN_TO_MEASURE else 0.0
    if not share:
        return "0  # too few images a class to hold some out: recall is not measured"
    return f"{share:g}  # of each class, never learnt from: recall is measured on it"


def _scalar(text: str) -> str:
    return yaml.safe_dump(text, width=1 << 16).removesuffix("\n").removesuffix("\n...")


def next_commands(path: Path, file: Path, root: str) -> list[str]:
    """Return what to type next, in order, each with what it does."""
    image = first_image(path)
    asked = shlex.quote(str(image)) if image is not None else "IMAGE"
    config = shlex.quote(str(file))
    commands = [
        (f"stream-odml config --check {config}", "weights, folders, ports and resources"),
        (
            f"stream-odml ingest {shlex.quote(str(path))} {shlex.quote(f'{root}/inbox')} --task base",
            "land the images",
        ),
        (f"stream-odml run {config}", "learn and serve them, until Ctrl-C"),
        (f"stream-odml query {asked} --root {shlex.quote(root)}", "in a second terminal"),
    ]
    width = max(len(command) for command, _ in commands)
    return [f"  {command:{width}}  # {what}" for command, what in commands]
