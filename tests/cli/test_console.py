"""What the live view of a running stream draws."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from stream_odml.cli.console import StreamView, recall_curve


def status(head: str, recall: float) -> dict[str, Any]:
    stage = {"phase": "idle", "task": "", "step": 0, "total_steps": 0, "losses": {}}
    return {
        "head": head, "stage": stage, "recall_at_1": {"union/served": recall}, "shards": {}, "images": {},
        "classes": 1, "problem": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recalls", "ascii_only", "curve"),
    [
        ([], False, ""),
        ([0.5], False, ""),
        ([0.0, 0.5, 1.0], False, "▁▅█  0.000 → 0.500 → 1.000"),
        ([0.9, 0.5, 0.6, 0.7], True, "%++*  0.500 > 0.600 > 0.700"),
    ],
)
def test_a_bar_for_each_version_from_0_to_1(recalls: list[float], ascii_only: bool, curve: str) -> None:
    assert recall_curve(recalls, ascii_only) == curve


def test_the_live_view_draws_recall_version_by_version() -> None:
    text = io.StringIO()
    with StreamView(Console(file=text, width=120, force_terminal=True, color_system=None), "demo") as view:
        for head, recall in (("v0001-aa", 0.5), ("v0001-aa", 0.5), ("v0002-bb", 0.75)):
            view.show(status(head, recall))
    assert "0.500" in text.getvalue()
    assert (
        recall_curve([0.5, 0.75], ascii_only=Console(file=text).options.ascii_only)[-13:] in text.getvalue()
    )
