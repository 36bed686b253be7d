"""Commands that write, describe and check a configuration; nothing is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream_odml.cli.console import say, say_findings, say_json
from stream_odml.cli.options import AsJson, out

if TYPE_CHECKING:
    from stream_odml.cli.own_images import OwnImages


def init(
    path: Annotated[
        Path,
        typer.Argument(help="Images: a folder of class folders, Parquet or Arrow file, or WebDataset tar."),
    ],
    out_file: Annotated[Path, typer.Option("--out", help="Configuration to write.")] = Path("stream.yaml"),
    root: Annotated[
        str | None, typer.Option(help="Stream root; by default a folder here, named after the images.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Pretrained model of transformers, by name or folder; or conv4, mobilenetv2, timm:NAME."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a MobileNetV2 (or of --backbone), a safetensors file.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the model's input, in pixels; by default what suits it."),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Share of each class that is held out to measure recall."),
    ] = None,
    new_classes: Annotated[
        int | None, typer.Option(min=2, help="New classes that are learnt together, once so many wait.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Look at your images, write a short configuration for them, and say what to run next.

    On a terminal it asks for pretrained weights, unless --backbone or --weights says it: for photographs they are
    worth more than every other choice.

    Examples:  stream-odml init photos/  ·  stream-odml init photos/ --backbone facebook/dinov2-small
    """
    import torch

    from stream_odml.cli.first_config import Wishes, next_commands, write_config

    if out_file.exists() and not force:
        raise ValueError(f"{out_file} exists; name another file with --out, or write over it with --force")
    seen = _looked_at(path)
    if backbone is None and weights is None and sys.stdin.isatty():
        backbone, weights = _ask_for_model()
    wishes = Wishes(
        root=root,
        backbone=backbone,
        weights=weights,
        image_size=image_size,
        held_out=held_out,
        new_classes=new_classes,
        gpus=torch.cuda.device_count(),
    )
    _say_what_weights_lack(weights)
    root = write_config(path, out_file, seen, wishes)
    say(out, f"wrote {out_file}. Next:")
    for line in next_commands(path, out_file, root):
        say(out, line)


def _say_what_weights_lack(weights: Path | None) -> None:
    if weights is not None and not weights.is_file():
        is_folder = weights.is_dir()
        what = "is a folder: name the file in it" if is_folder else "is not here: put the weights there"
        say(out, f"{weights} {what} before you run the stream, or correct the path", "yellow")


def _looked_at(path: Path) -> OwnImages:
    """Look at the images, and say what was found."""
    from stream_odml.cli.own_images import look_at

    with out.status(f"looking at {path}"):
        seen = look_at(path)
    say(out, f"{path}: {seen.in_words()}")
    for note in seen.notes:
        say(out, note, "yellow")
    return seen


def _ask_for_model() -> tuple[str | None, Path | None]:
    """Ask for a pretrained model; return a backbone, or a file of weights, or neither."""
    answer = typer.prompt(
        "Pretrained model: a name or folder of transformers, a safetensors file of a MobileNetV2, or nothing",
        default="",
        show_default=False,
    ).strip()
    return (None, Path(answer)) if answer.endswith(".safetensors") else (answer or None, None)


def config(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a file with every field.")] = False,
    show: Annotated[
        Path | None,
        typer.Option(help="Print a file with all defaults filled in, as JSON, its secrets masked."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Check a file, and whether this machine has what it asks for; exit code 1 if not."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Describe or check the configuration. `--check` starts nothing and makes nothing: it looks whether weights exist
    and the backbone builds, folders can be read, ports are free, CPUs, GPUs, memory and disk suffice.

    Examples:  stream-odml config --example > stream.yaml  ·  stream-odml config --check stream.yaml
    """
    from stream_odml.config.stream import example_yaml, load_config, schema_json, shown_json

    if check is not None:
        raise typer.Exit(_check(check, as_json))
    if show is not None:
        print(shown_json(load_config(show)))
    elif schema:
        print(schema_json())
    elif example:
        print(example_yaml(), end="")
    else:
        raise ValueError("say which: --schema, --example, --show FILE or --check FILE")


def _check(path: Path, as_json: bool) -> int:
    from stream_odml.cli.preflight import examine
    from stream_odml.config.stream import load_config
    from stream_odml.observe.plain import plain

    stream = load_config(path)
    with out.status("looking; a model that is loaded by its name may take a minute"):
        found = say_findings(out, examine(stream), as_json)
    if as_json:
        say_json(plain(found), indent=2)
    failures = [finding.check for finding in found if finding.state == "failure"]
    if failures and not as_json:
        say(out, f"{path} cannot be run here yet: {', '.join(failures)}", "red")
    return 1 if failures else 0
