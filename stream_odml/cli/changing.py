"""Commands that change what a stream holds or serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stream_odml.cli.console import say
from stream_odml.cli.options import DryRun, Root, Token, Url, Yes, is_terminal, may_go_on, out

WOULD_REMOVE = "would remove "
"""How a line begins that names a landed copy which `forget --verify --inbox` deletes."""


def ingest(
    path: Annotated[
        Path, typer.Argument(help="Folder of class folders, Parquet or Arrow file, or WebDataset tar.")
    ],
    inbox: Annotated[str, typer.Argument(help="The stream's inbox: a folder or s3://bucket/prefix.")],
    rows_per_shard: Annotated[
        int, typer.Option(min=1, help="Rows of each shard cut from a Parquet file.")
    ] = 1000,
    task: Annotated[
        str | None, typer.Option(help="Say that these shards are a complete task of this name.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the shards; by default made from that of the folder or file.")
    ] = None,
) -> None:
    """Land images as shards. Repeating the command lands nothing twice; of a folder that has grown it lands
    what is new. The class of an image is its folder, without those such as `train` and `images`.

    Examples:  stream-odml ingest photos/ stream-root/inbox  ·  stream-odml ingest new.parquet stream-root/inbox
    --task spring
    """
    from stream_odml.cli.ingest import land_path

    for line in land_path(path, inbox, rows_per_shard, task, name):
        say(out, line)


def rollback(
    root: Root,
    version_id: Annotated[str, typer.Argument(help="Version to serve again; `versions` lists them.")],
    relearn: Annotated[bool, typer.Option(help="Learn the tasks of the branch left behind again.")] = True,
    dry_run: DryRun = False,
    yes: Yes = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Serve an earlier (or later) version. No item is lost: stored vectors are mapped.

    With --no-relearn the tasks that only the branch left behind had learnt are skipped: it shows them and asks.

    Examples:  stream-odml rollback stream-root v0002  ·  stream-odml rollback stream-root v0002 --no-relearn --dry-run
    """
    from stream_odml.cli.stream_root import left_behind, roll_back

    if dry_run or not relearn:
        touched = left_behind(root, version_id, relearn)
        if not may_go_on(touched, yes or relearn, dry_run, scripts_say_yes=True):
            return
    say(out, roll_back(root, version_id, relearn, url, token))


def relearn(
    root: Root,
    task: Annotated[str, typer.Argument(help="Task that was refused or skipped; `status` lists them.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Publish the result whatever the quality gate finds.")
    ] = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Learn a task after all that was refused or skipped. A running stream begins once those that wait are learnt.

    Examples:  stream-odml relearn stream-root task-0002  ·  stream-odml relearn stream-root task-0002 --anyway
    """
    from stream_odml.cli.stream_root import relearn_task

    say(out, relearn_task(root, task, anyway, url, token))


def forget(
    root: Root,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Forget every item of this class.")
    ] = None,
    item: Annotated[str | None, typer.Option(help="Forget this item.")] = None,
    shard: Annotated[str | None, typer.Option(help="Forget all of this shard.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Search every file under the root for what was forgotten.")
    ] = False,
    inbox: Annotated[
        bool, typer.Option("--inbox", help="With --verify: delete landed shards that hold it, once learnt.")
    ] = False,
    inbox_at: Annotated[
        str | None,
        typer.Option(
            help="The folder of landed shards, where it is not the folder inbox in or beside the root, nor push in it."
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Forget a class, an item or a shard: hidden at once, then deleted. `--verify` proves it, exit code 1 if not.

    On a terminal it says how many items that are, and asks. `--inbox` deletes files of yours: scripts say --yes.

    Examples:  stream-odml forget stream-root --class "sku 4711"  ·  stream-odml forget stream-root --class "sku 4711"
    --verify --inbox --dry-run
    """
    from stream_odml.cli.stream_root import covered_by, forget_name, verify_forgotten

    options: list[tuple[Literal["class", "item", "shard"], str | None]] = [
        ("class", class_name), ("item", item), ("shard", shard)
    ]  # fmt: skip
    given = [(kind, name) for kind, name in options if name is not None]
    if len(given) != 1:
        raise ValueError("say what to forget: one of --class NAME, --item ID, --shard ID")
    kind, name = given[0]
    if inbox and not verify:
        raise ValueError(
            "--inbox goes with --verify, once what is to be forgotten was; nothing is forgotten yet"
        )
    if not verify:
        asks = dry_run or (is_terminal() and not yes)
        if not asks or may_go_on([covered_by(root, kind, name)], yes, dry_run, scripts_say_yes=False):
            say(out, forget_name(root, kind, name, url, token, inbox_at))
        return
    if inbox and not yes:
        lines, gone = verify_forgotten(root, kind, name, inbox, inbox_at, dry_run=True)
        removable = [line for line in lines if line.startswith(WOULD_REMOVE)]
        inbox = bool(removable) and may_go_on(removable, yes, dry_run, scripts_say_yes=True)
    lines, gone = verify_forgotten(root, kind, name, inbox, inbox_at)
    for line in lines:
        say(out, line)
    raise typer.Exit(0 if gone else 1)


def backup(
    root: Root,
    target: Annotated[str, typer.Argument(help="Empty folder or object-store prefix for the copy.")],
) -> None:
    """Copy a stream root as it is at one instant, while its stream runs. To restore, copy the copy back.

    What was pushed, or copied from a topic, is in it. The inbox is not: keep landed shards until they are learnt.

    Examples:  stream-odml backup stream-root backups/monday  ·  stream-odml backup backups/monday stream-root-2
    """
    from stream_odml.store.backup import back_up

    done = back_up(root, target)
    say(out, f"{done.files} files, {done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s; head {done.head}")
    if done.left_out:
        say(out, f"not copied, as they are no part of a stream: {', '.join(done.left_out)}")
