"""Held out once, held out for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stream_odml.pipeline.holdout import is_held_out

IDS = [f"item/{n}" for n in range(20_000)]


def test_share_and_nesting() -> None:
    tenth, third = ({name for name in IDS if is_held_out(name, share)} for share in (0.1, 0.3))
    assert abs(len(tenth) / len(IDS) - 0.1) < 0.01
    assert tenth < third
    assert [name for name in IDS[:40] if name in tenth] == [
        "item/8",
        "item/13",
        "item/15",
        "item/16",
        "item/30",
    ]  # as of every release
    assert not any(is_held_out(name, 0.0) for name in IDS)
    assert all(is_held_out(name, 1.0) for name in IDS)
    with pytest.raises(ValueError, match=r"1\.5"):
        is_held_out("x", 1.5)


def test_the_same_in_another_process() -> None:
    code = (
        "from stream_odml.pipeline.holdout import is_held_out as h\n"
        "print(sum(h(f'item/{n}', 0.2) for n in range(999)))"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(seen) == sum(is_held_out(f"item/{n}", 0.2) for n in range(999))
