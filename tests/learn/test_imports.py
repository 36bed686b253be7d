"""What is learnt does not know where it runs, and pays for no library that no name asked for."""

from __future__ import annotations

import subprocess
import sys

from tests.sources import PACKAGE

FORBIDDEN = (
    "ray",
    "pyarrow",
    "deltalake",
    "pydantic",
    "kornia",
    "transformers",
    "timm",
    "pytorch_metric_learning",
    "torchvision",
)


def test_learning_loads_no_runtime_no_store_no_optional_library_and_no_compiler() -> None:
    """All modules are loaded, then two tasks learnt, whose images kornia augments."""
    names = [f"stream_odml.learn.{path.stem}" for path in sorted((PACKAGE / "learn").glob("[a-z]*.py"))]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules])\n"
        "from tests.learn.tiny import after; after(2)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "False"]
