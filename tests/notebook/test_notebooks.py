"""The notebooks, executed cell by cell as a reader does, with small data."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.docs.pages import REPOSITORY

NOTEBOOKS = REPOSITORY / "notebooks"


def cells(name: str) -> list[str]:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def execute(name: str, **smaller: str) -> dict[str, Any]:
    """Run every cell in one namespace, each text that is named replaced by another."""
    namespace: dict[str, Any] = {}
    for number, source in enumerate(cells(name)):
        for old, new in smaller.items():
            source = re.sub(rf"^{old} = .*$", f"{old} = {new}", source, flags=re.MULTILINE)
        exec(compile(source, f"{name}, cell {number}", "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a notebook is opened: its own folder. What it starts finds the package."""
    monkeypatch.chdir(NOTEBOOKS)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(REPOSITORY), os.environ.get("PYTHONPATH", ""))))


def test_every_notebook_is_listed_valid_and_without_outputs() -> None:
    page = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in NOTEBOOKS.glob("*.ipynb")}
    assert set(re.findall(r"^\| \[(\S+)\]\(\1\)", page, re.MULTILINE)) == names
    for name in names:
        for number, source in enumerate(cells(name)):
            compile(source, f"{name}, cell {number}", "exec")
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_methods_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    found = execute("compare_methods.ipynb", **{"CLASSES, SIDE, BASE_STEPS, STAGE_STEPS": "9, 16, 8, 3"})
    assert {method: len(recalls) for method, recalls in found["recalls"].items()} == dict.fromkeys(
        found["METHODS"], 3
    )


@pytest.mark.slow
def test_a_class_is_erased_and_nothing_of_it_is_left() -> None:
    found = execute("erase_and_prove.ipynb")
    assert found["before"] == ["elm"] * 5
    assert "elm" not in found["after"]
    assert len(found["after"]) == 5
    assert found["left"] == 0
    assert found["same"] is True


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_first_stream_learns_and_takes_classes_on() -> None:
    found = execute("first_stream.ipynb")
    assert found["running"].returncode == 0
    assert [hit.class_name for hit in found["hits"]][:1] == ["class-09"]
    assert found["versions_learnt"]() >= 2


def test_no_notebook_leaves_anything_here() -> None:
    assert {path.suffix for path in Path(NOTEBOOKS).iterdir()} <= {".ipynb", ".md"}
