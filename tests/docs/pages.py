"""The documentation as it is written: its pages, the commands and the snippets on them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text("utf-8") for path in sorted(DOCS.rglob("*.md"))}
PAGES["README.md"] = (REPOSITORY / "README.md").read_text("utf-8")


def hooks() -> ModuleType:
    """Return what generates the reference."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page: str) -> list[str]:
    """Return every line of ours in the shell blocks of a page, and every whole command within its text."""
    lines = [line.split("  #")[0] for block in blocks(page, "bash") for line in block.splitlines()]
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    return [line for line in lines if line.startswith("stream-odml ")] + re.findall(
        r"`(stream-odml [a-z]+ [^`]*)`", text
    )
