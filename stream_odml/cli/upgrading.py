"""The command `upgrade`: another backbone, without embedding everything again first."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stream_odml.cli.confirming import DryRun
from stream_odml.cli.console import say, say_json
from stream_odml.cli.errors import AsJson, Root, out
from stream_odml.cli.exchanging import adopted_lines, progress_bar
from stream_odml.cli.help import add_commands


def upgrade(
    root: Root,
    model: Annotated[
        Path, typer.Option(help="YAML file of the new stream: its model, and a root of its own.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of class folders with similar images, where none of the stream's are at hand."
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Replace the backbone: take a root over into a new one, each item by a map from the old features to the new ones.

    First says what recall is to be expected: mapped, beside staying and beside embedding every image again. The old
    root is only read, and may be served until the new one suits you; to go back, serve it again. The new stream goes on
    with the same inbox; in the background it embeds the items whose shards can still be read, worst first, and each is
    exact from then on. Repeating the command goes on.

    Examples:  stream-odml upgrade stream-root --model new.yaml --dry-run  ·  stream-odml upgrade stream-root
    --model new.yaml --images photos
    """
    from stream_odml.config.stream import load_config
    from stream_odml.exchange.upgrading import prepare

    config = load_config(model)
    with out.status("embedding the images at hand by both models"):
        prepared = prepare(root, config, images)
    expected = prepared.expected
    if not as_json:
        say(out, f"expected recall@1, of {expected.pairs} images that both models saw:")
        say(out, f"  {expected.staying:.3f}  with the model of now")
        mapped = expected.items - expected.exact
        say(out, f"  {expected.mapped:.3f}  with the new model, {mapped} of {expected.items} items mapped")
        seconds = max(expected.seconds_to_reembed, mapped / (config.store.renew_per_s or float("inf")))
        say(out, f"  {expected.reembedded:.3f}  once all are embedded again ({seconds:.0f} s)")
        say(
            out,
            "the stream does so in the background for items whose shards can still be read, worst first, at most "
            f"{config.store.renew_per_s:g} a second (store.renew_per_s)",
        )
    report = None
    if not dry_run:
        with progress_bar("mapped", prepared.source.count) as progress:
            report = prepared.adopt(progress)
    if as_json:
        say_json({"expected": asdict(expected), "adopted": None if report is None else asdict(report)})
        return
    if report is None:
        say(out, "nothing was made (--dry-run)")
        return
    for line in adopted_lines(report):
        say(out, line)
    say(out, f"start it: stream-odml run {model}")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_commands(app, "Change", upgrade)
