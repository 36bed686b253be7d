"""What is learnt does not know where it runs, and pays for no library that no name asked for."""

from __future__ import annotations

import subprocess
import sys


def test_learning_loads_no_runtime_no_optional_library_and_no_compiler() -> None:
    forbidden = (
        "ray",
        "pyarrow",
        "pydantic",
        "kornia",
        "transformers",
        "timm",
        "pytorch_metric_learning",
        "torchvision",
    )
    code = (
        "import sys, stream_odml.learn.stage, stream_odml.learn.evaluation, stream_odml.learn.named\n"
        f"print([name for name in {forbidden!r} if name in sys.modules])\n"
        "from tests.learn.tiny import after; after(2)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "False"]


def test_a_head_is_chosen_and_solved_without_torch() -> None:
    code = "import sys, stream_odml.learn.head_choice; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
