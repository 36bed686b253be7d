"""Help texts: whole sentences at any width, and examples that can be copied."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from stream_odml.cli.main import app, help_text
from tests.cluster.small_root import claim

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_paragraphs_are_joined_and_examples_come_one_a_line() -> None:
    text = help_text("Do this\n    and that.\n\n    More.\n\n    Examples:  so a  ·  so b\n    --c")
    assert text == "Do this and that.\n\nMore.\n\nExamples:\nso a\nso b --c"
    assert help_text("Do.\n\nExample:  so a\nExample:  so b").endswith("Examples:\nso a\nso b")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "version"])
def test_every_command_shows_examples_of_itself(command: str) -> None:
    said = (
        CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "1000"}, catch_exceptions=False).output
    )
    examples = said.partition("Examples:")[2].partition("╭")[0].strip().splitlines()
    assert examples
    assert all(one.strip().startswith(f"stream-odml {command}") for one in examples)
    assert not re.search(r"\n [a-z]", said.partition("Examples:")[0].partition("Usage:")[2])  # no broken line


def test_help_loads_no_heavy_library() -> None:
    ask = (
        "import sys; import stream_odml.cli.main; "
        "sys.exit(' '.join({'torch', 'ray', 'faiss', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=os.environ)
    assert done.stderr.strip() == ""


def test_status_loads_what_reads_tables_and_no_more(tmp_path: Path) -> None:
    claim(tmp_path / "root").release()
    ask = (
        "import sys; from stream_odml.cli.stream_root import root_status; root_status(sys.argv[1]); "
        "sys.exit(' '.join({'torch', 'ray', 'faiss', 'pandas', 'scipy.linalg', 'fastapi'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", ask, str(tmp_path / "root")]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert done.stderr.strip() == ""
