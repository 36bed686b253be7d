"""Help texts of commands out of their docstrings: lines of any width, examples one a line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import typer

_EXAMPLES = re.compile(r"Examples?:\s+")


def add_commands(app: typer.Typer, panel: str, *commands: Callable[..., Any]) -> None:
    """Add commands to the app, under the heading `panel` of its list."""
    for command in commands:
        text = help_text(inspect.getdoc(command) or "")
        app.command(help=text, short_help=_first_sentence(text), rich_help_panel=panel)(command)


def help_text(docstring: str) -> str:
    """Return a docstring with each paragraph as one line. Examples, divided by a dot in the middle of the line, or each
    after a word of its own, come one a line."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring.strip()))
    return "\n\n".join(_examples(part) if _EXAMPLES.match(part) else part for part in paragraphs)


def _examples(paragraph: str) -> str:
    commands = re.split(r"\s+·\s+|\s*Examples?:\s+", paragraph)
    # Not indented: typer takes the indentation away where no other paragraph stands before them.
    return "\n".join(["Examples:", *(command.strip() for command in commands if command.strip())])


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].strip()
