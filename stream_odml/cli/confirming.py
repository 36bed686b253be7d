"""Asking before something is lost: `--dry-run` shows what would be touched, `--yes` is for scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from stream_odml.cli.console import say
from stream_odml.cli.errors import out

SHOWN = 10
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be touched, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def is_terminal() -> bool:
    """Return whether a person can be asked."""
    return sys.stdin.isatty()


def may_go_on(touched: Sequence[str], yes: bool, dry_run: bool, scripts_say_yes: bool) -> bool:
    """Show what will be touched, and return whether to do it: asked on a terminal, unless `yes` says so.

    `scripts_say_yes`: without a terminal, raise ValueError unless `yes` is given. A refusal on the terminal aborts.
    """
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
