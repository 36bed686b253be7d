"""CONTRIBUTING.md and ARCHITECTURE.md: the worked changes apply as written, and the files that are named are there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.paths import REPOSITORY

CHANGES = re.findall(
    r"### (.*?)\n.*?```diff\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL
)
MAX_FILES = 3


@pytest.mark.parametrize(("title", "diff"), CHANGES, ids=[title for title, _ in CHANGES])
def test_a_worked_change_applies_as_written(title: str, diff: str, tmp_path: Path) -> None:
    files = re.findall(r"^\+\+\+ b/(.*)$", diff, re.MULTILINE)
    assert 1 < len(files) <= MAX_FILES
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    command = ["git", "apply", "--verbose", "-"]
    done = subprocess.run(command, input=diff, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in files:
        changed = (tmp_path / name).read_text("utf-8")
        assert changed != (REPOSITORY / name).read_text("utf-8")
        compile(changed, name, "exec")


def test_there_are_three() -> None:
    assert [title for title, _ in CHANGES] == ["Add a metric", "Add an index kind", "Add a loss term"]


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_named_is_there(page: str) -> None:
    text = re.sub(r"```.*?```", "", (REPOSITORY / page).read_text("utf-8"), flags=re.DOTALL)
    named = set(re.findall(r"`([\w./]+\.py)`", text)) | set(re.findall(r"\]\(([^)]+)\)", text))
    assert len(named) > 3
    roots = (REPOSITORY, REPOSITORY / "stream_odml", REPOSITORY / "stream_odml" / "cluster")
    assert [name for name in sorted(named) if not any((root / name).exists() for root in roots)] == []
