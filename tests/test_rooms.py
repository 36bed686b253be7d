"""The rules between the packages of stream_odml: arrows point one way, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.sources import PACKAGE, REPOSITORY, modules, paths

MAX_LINES = 400

STORE = {"storage", "learn"}
WORK = {"search", "models", "store", "storage", "ingest", "learn", "config", "observe"}
MAY_IMPORT = {
    "storage": set(),
    "learn": set(),
    "client": set(),
    "config": {"learn", "ingest", "storage"},
    "ingest": {"storage"},
    "store": STORE,
    "search": {"store", *STORE},
    "models": {"ingest", "store", *STORE},
    "observe": {"config", "ingest", "storage"},
    "pipeline": WORK,
    "exchange": {"pipeline", *WORK},
    "service": WORK,
    "cluster": {"pipeline", "service", *WORK},
    "cli": {"cluster", "client", "exchange", "pipeline", "service", *WORK},
    "notebook": {"client", "exchange", "service", *WORK},
}
"""What each package may import of the others."""


def imported(tree: ast.Module) -> Iterator[str]:
    """Every dotted name that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_is_named() -> None:
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_arrows_point_one_way(room: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path, tree in modules(PACKAGE / room)
        for name in imported(tree)
        if name.startswith("stream_odml.")
        and name.split(".")[1] in MAY_IMPORT
        and name.split(".")[1] not in MAY_IMPORT[room] | {room}
    ]
    assert wrong == []


def test_only_cluster_imports_ray() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path, tree in modules(PACKAGE, "ray")
        for name in imported(tree)
        if name.split(".")[0] == "ray" and "cluster" not in path.relative_to(PACKAGE).parts
    ]
    assert wrong == []


LOADS_NONE_OF: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("store", "ingest"), ("ray", "faiss", "torch")),
    (("models",), ("ray", "faiss")),
    (("search", "pipeline", "exchange", "service", "notebook"), ("ray",)),
]
"""What is loaded by some packages, then with them by further ones; `tests/learn/test_imports.py` has `learn`."""


def test_packages_load_no_library_of_another() -> None:
    code = ["import importlib, sys"]
    for rooms, forbidden in LOADS_NONE_OF:
        names = [
            ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
            for room in rooms
            for path in paths(PACKAGE / room)
        ]
        code.append(f"for name in {names!r}: importlib.import_module(name)")
        code.append(f"print({rooms!r}, [name for name in {forbidden!r} if name in sys.modules])")
    run = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{rooms!r} []" for rooms, _ in LOADS_NONE_OF]


OPENS = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "mkdtemp", "memmap", "unlink"}


def test_learn_opens_no_file() -> None:
    """But for pretrained weights that a specification names, which the backbones load."""
    wrong = [
        f"{path.name}: {ast.unparse(node.func)}"
        for path, tree in modules(PACKAGE / "learn")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", None) in OPENS or getattr(node.func, "attr", None) in OPENS)
    ]
    assert wrong == []


def test_tests_and_benchmarks_never_import_each_other() -> None:
    pairs = (("tests", "benchmarks"), ("benchmarks", "tests"))
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for mine, other in pairs
        for path, tree in modules(REPOSITORY / mine, other)
        for name in imported(tree)
        if name.split(".")[0] == other
    ]
    assert wrong == []


def test_no_file_is_long() -> None:
    long = {
        str(path.relative_to(REPOSITORY)): lines
        for folder in ("stream_odml", "tests", "benchmarks")
        for path in paths(REPOSITORY / folder)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}
