"""The command `doctor`: what could keep a stream from running here, each with what to do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from stream_odml.cli.console import say, say_json
from stream_odml.cli.errors import AsJson, Root, out
from stream_odml.cli.help import add_commands

if TYPE_CHECKING:
    from stream_odml.pipeline.examining import Finding

_MARKS = {"ok": "ok     ", "warning": "warning", "failure": "FAILURE"}
_STYLES = {"ok": "", "warning": "yellow", "failure": "red"}


def doctor(
    root: Root,
    config: Annotated[
        Path | None, typer.Option(help="The stream's YAML file, for its ports and storage options.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine a stream root and this machine, changing nothing; exit code 1 if something keeps a stream from running.

    Reads every file of the root: tables, gallery, artifacts by their hashes, and embeds the canaries of every kept
    model again. Of the machine: disk, shared memory, ports, clock, installed versions.

    Examples:  stream-odml doctor stream-root  ·  stream-odml doctor stream-root --config stream.yaml --json
    """
    from stream_odml.cli.machine import examine
    from stream_odml.config.stream import load_config

    settings = None if config is None else load_config(config)
    findings: list[Finding] = []
    for finding in examine(root, settings):
        findings.append(finding)
        if not as_json:
            _tell(out, finding)
    failures = sum(finding.state == "failure" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    if as_json:
        say_json({"ok": not failures, "findings": [asdict(finding) for finding in findings]}, indent=2)
    else:
        say(out, f"{len(findings)} checks: {failures} failures, {warnings} warnings")
    raise typer.Exit(1 if failures else 0)


def _tell(console: Console, finding: Finding) -> None:
    style = _STYLES[finding.state]
    say(console, f"{_MARKS[finding.state]}  {finding.check:14} {finding.detail}", style)
    if finding.remedy:
        say(console, f"{'':9}{'':14} -> {finding.remedy}", style)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_commands(app, "Look", doctor)
