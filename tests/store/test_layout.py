"""Everything that the package writes below a stream root has its place in `layout.py`: copied by a backup, or left out
for a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stream_odml
from stream_odml.storage.files import open_files
from stream_odml.store.layout import COPIED, NOT_COPIED, strangers

PACKAGE = Path(stream_odml.__file__).parent
CALLS = ("write", "upload", "delete", "exists", "list", "read")
"""Methods of `Files`, whose first argument is a path below a root."""
ROOTS = (
    "root",
    "config.root",
    "self._config.root",
    "self.config.root",
    "self._store.uri",
    "store.uri",
    "self._root",
)


def named_in(text: str) -> Iterator[str]:
    """First parts of names below a root that a module says in words: `root / "cache"`, `f"{root}/push"`,
    `files.write("endpoints.json", ...)`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _is_root(node.left):
            yield from _first_part(node.right)
        elif isinstance(node, ast.JoinedStr) and len(node.values) > 1:
            head, then = node.values[:2]
            if isinstance(head, ast.FormattedValue) and _is_root(head.value) and _text(then).startswith("/"):
                yield from _first_part(ast.Constant(_text(then)[1:]))
        elif isinstance(node, ast.Call) and node.args and _is_of_files(node.func):
            yield from _first_part(node.args[0])


def _is_of_files(call: ast.AST) -> bool:
    return isinstance(call, ast.Attribute) and call.attr in CALLS and "files" in ast.unparse(call.value)


def _is_root(node: ast.AST) -> bool:
    text = ast.unparse(node)
    for noise in (".rstrip('/')", ".absolute()"):
        text = text.replace(noise, "")
    return text.removeprefix("Path(").removesuffix(")") in ROOTS


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _first_part(node: ast.AST) -> Iterator[str]:
    node = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
    name, slash, _ = _text(node).partition("/")
    if name and (slash or isinstance(node, ast.Constant)):
        yield name


def test_every_name_below_a_root_is_decided_upon() -> None:
    known = {*COPIED, *NOT_COPIED}
    found = {
        name: path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if path.parts[-2] != "ingest"  # writes into inboxes
        for name in named_in(path.read_text(encoding="utf-8"))
    }
    assert {"progress", "cache", "traces", "endpoints.json", "artifacts"} <= found.keys(), (
        "what is looked for is seen"
    )
    assert {name: str(path) for name, path in found.items() if name not in known} == {}


@pytest.mark.parametrize(
    "line",
    ['Path(config.root) / "more"', "f\"{config.root.rstrip('/')}/more/x\"", "files.write('more/x', data)"],
)
def test_a_new_name_is_seen(line: str) -> None:
    assert list(named_in(line)) == ["more"]


def test_what_is_no_part_of_a_stream_is_named(tmp_path: Path) -> None:
    for name in ("ledger/x", "push/x", "notes.txt", "old/x", ".aside-12"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert strangers(open_files(str(tmp_path))) == ["notes.txt", "old"]
