"""How the package reads: a docstring of a public function says first what the function does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "stream_odml"
VERBS = """
Accept Account Add Answer Append Apply Ask Become Begin Bring Build Call Check Choose Claim Close Commit Compare
Complete Compose Compute Convert Copy Count Create Decode Delete Describe Dispatch Divide Do Drain Draw Drop Embed
Encode End Escape Evaluate Examine Export Feed Fill Find Fit Flush Forget Format Free Gather Give Hand Have Hold
Import Index Join Keep Kill Land Lay Learn Leave Let List Load Look Make Map Mark Measure Merge Move Name Narrow
Note Open Order Pack Parse Pass Pool Prepare Print Publish Push Put Quarantine Raise Read Receive Record Reduce
Refresh Refuse Release Remove Renew Replace Report Reserve Reset Restore Resume Return Rewrite Roll Run Save Say
Search See Select Send Serve Set Show Skip Solve Split Start Stop Store Submit Subtract Sum Swap Take Teach Tell
Tighten Time Train Turn Update Use Validate Verify Wait Warn Watch Write Yield
"""
"""Words that such a docstring begins with; a verb that is missing is added here."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_property(function: Function) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Yield functions and methods without a leading underscore; of properties none, which are named as nouns."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node.body)
        elif isinstance(node, Function) and not (node.name.startswith("_") or is_property(node)):
            yield node


def test_public_docstrings_begin_with_a_verb() -> None:
    verbs = set(VERBS.split())
    wrong = [
        f"{path.relative_to(PACKAGE)}:{function.lineno} {function.name}: {text.splitlines()[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for function in public_functions(ast.parse(path.read_text(encoding="utf-8")).body)
        if (text := ast.get_docstring(function)) and text.split()[0].strip(".,:;") not in verbs
    ]
    assert wrong == [], 'begin with a verb ("Return ...", "Raise ..."):\n' + "\n".join(wrong)
