"""Options that several commands share, where they print, and how they ask before something is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from typer.models import ParameterInfo

from stream_odml.cli.console import say
from stream_odml.storage.regular import machine_path

out = Console()
SHOWN = 10
"""Lines that are shown of what will be touched."""

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; `stream-odml config --example` prints one.")]
Root = Annotated[str, typer.Argument(help="Stream root: the folder or prefix with the stream's tables.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
Url = Annotated[
    str | None, typer.Option(help="Service address; by default the one noted in the stream root.")
]
Token = Annotated[str | None, typer.Option(envvar="STREAM_ODML_TOKEN", help="Bearer token.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be touched, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def is_terminal() -> bool:
    """Return whether a person can be asked."""
    return sys.stdin.isatty()


def may_go_on(touched: Sequence[str], yes: bool, dry_run: bool, scripts_say_yes: bool) -> bool:
    """Show what will be touched, and return whether to do it: asked on a terminal, unless `yes` says so.
    `scripts_say_yes`: without a terminal, raise ValueError unless `yes` is given. A refusal on the terminal aborts."""
    if yes and not dry_run:
        return True
    for line in touched[:SHOWN]:
        say(out, line)
    if len(touched) > SHOWN:
        say(out, f"and {len(touched) - SHOWN} more")
    if dry_run:
        say(out, "nothing was changed (--dry-run)")
        return False
    if is_terminal():
        typer.confirm("This cannot be undone. Go on?", abort=True)
    elif scripts_say_yes:
        raise ValueError(
            "there is no terminal to ask at; look at it with --dry-run, then repeat the command with --yes"
        )
    return True


def path(text: str | Path) -> Path:
    """Return a path of this machine that is written out: an empty one, of a variable that is not set, would be the
    working folder, and an address a folder in it."""
    # Help shows the name of this function as the kind of the option.
    try:
        return Path(machine_path("path", str(text)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def check_paths(command: Callable[..., Any]) -> None:
    """Let every path that the command takes be checked by `path`."""
    hints = get_type_hints(command, include_extras=True)
    for hint in hints.values():
        kind, *infos = get_args(hint) or (None,)
        for info in infos:
            if isinstance(info, ParameterInfo) and Path in (kind, *get_args(kind)):
                info.parser = path
    command.__annotations__.update(hints)
