"""How the code reads: the docstring of a function begins with what it does, none wraps into one orphaned word, and
names are plain English."""

from __future__ import annotations

import ast
import inspect
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.sources import PACKAGE, REPOSITORY, modules, paths

INSTEAD = {
    "told": "reported",
    "stones": "tombstones",
    "born": "created",
    "mended": "fixed",
    "innocent": "not the cause",
    "dear": "expensive",
    "leftovers": "orphaned",
}
"""Parts of names that only this project used, and what everybody calls it."""
VERBS = """
Accept Account Add Agree Answer Append Apply Ask Become Begin Bring Build Call Change Check Choose Claim Close
Commit Compare Complete Compose Compute Convert Copy Count Create Decode Delete Describe Dispatch Divide Do
Drain Draw Drop Embed Encode End Escape Evaluate Examine Export Feed Fill Find Fit Flush Forget Format Free
Gather Give Go Hand Have Hold Import Index Join Keep Kill Land Lay Learn Leave Let Limit List Load Log Look
Make Map Mark Measure Merge Mirror Move Name Narrow Note Open Order Pack Parse Pass Place Pool Prepare Print
Publish Push Put Quarantine Raise Read Receive Record Reduce Refresh Refuse Register Release Remove Renew
Replace Report Reserve Reset Restore Resume Return Rewrite Roll Rotate Run Save Say Search See Seed Select
Send Serve Set Show Silence Skip Solve Split Start Stop Store Submit Subtract Sum Swap Take Teach Tell Tighten
Time Trace Train Turn Update Use Validate Verify Wait Warn Watch Widen Write Yield
"""
"""Words that such a docstring begins with; a verb that is missing is added here."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_property(function: Function) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def functions(tree: ast.Module) -> Iterator[Function]:
    """Yield functions and methods, without properties, which are named as nouns, and `__init__`, which has arguments
    to tell of."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and node.name != "__init__" and not is_property(node):
            yield node


def test_docstrings_begin_with_a_verb() -> None:
    verbs = set(VERBS.split())
    wrong = [
        f"{path.relative_to(PACKAGE)}:{function.lineno} {function.name}: {text.splitlines()[0]}"
        for path, tree in modules(PACKAGE)
        for function in functions(tree)
        if (text := ast.get_docstring(function)) and text.split()[0].strip(".,:;") not in verbs
    ]
    assert wrong == [], 'begin with a verb ("Return ...", "Raise ..."):\n' + "\n".join(wrong)


def test_no_docstring_wraps_into_one_word() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{node.end_lineno} {lines[-1]}"
        for path, tree in modules(PACKAGE)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for paragraph in inspect.cleandoc(str(node.value.value)).split("\n\n")
        if len(lines := paragraph.splitlines()) > 1 and len(lines[-1].split()) == 1
    ]
    assert wrong == [], "\n".join(wrong)


def test_docstrings_and_comments_have_one_markup() -> None:
    """Single backticks, which read well in an editor and on the site alike."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{number} {line.strip()}"
        for path, _ in modules(PACKAGE)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"``|:(class|meth|func|data|attr|mod):`", line)
    ]
    assert wrong == [], "\n".join(wrong)


def test_names_are_plain_english() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{token.start[0]} {token.string}: say {INSTEAD[part]}"
        for folder in ("stream_odml", "tests", "benchmarks")
        for path in paths(REPOSITORY / folder, *INSTEAD)
        for token in _names(path)
        for part in INSTEAD.keys() & token.string.lower().split("_")
    ]
    assert wrong == [], "\n".join(wrong)


def _names(path: Path) -> Iterator[tokenize.TokenInfo]:
    with path.open("rb") as file:
        yield from (token for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME)
