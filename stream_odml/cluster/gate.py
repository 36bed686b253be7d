"""The quality gate: whether a finished stage may replace the version that is served."""

from __future__ import annotations

from collections.abc import Mapping

from stream_odml.cluster.figures import recall_key
from stream_odml.config import GateConfig


def verdict(gate: GateConfig, figures: Mapping[str, float]) -> str | None:
    """Why the stage must not be published, or None. Compares served Recall@1 with the parent's, split by split."""
    if not gate.enabled:
        return None
    for split, most in (("new", gate.max_new_loss), ("old", gate.max_old_loss)):
        before = figures.get(f"parent_recall_at_1/{split}")
        after = figures.get(recall_key(split, "served"))
        if before is not None and after is not None and before - after > most:
            return (
                f"served Recall@1 on {split} classes would fall from {before:.3f} to {after:.3f}, "
                f"by more than {most:g}"
            )
    return None
