"""Arguments and options that several commands share, and where they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console()

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; `stream-odml config --example` prints one.")]
Root = Annotated[str, typer.Argument(help="Stream root: the folder or prefix with the stream's tables.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
Url = Annotated[
    str | None, typer.Option(help="Service address; by default the one noted in the stream root.")
]
Token = Annotated[str | None, typer.Option(envvar="STREAM_ODML_TOKEN", help="Bearer token.")]
