"""The quality gate: whether a finished stage may replace the version that is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stream_odml.config.gate import GateConfig
from stream_odml.pipeline.messages import StageOrder, StageResult
from stream_odml.store.artifacts import ArtifactRef
from stream_odml.store.version_metrics import VersionMetrics

MIN_SPREAD = 1e-4
"""Of a task's images, as the parent embeds them, over stored vectors. Below it they are one image: how the model moved
elsewhere cannot be read from them."""
OVERRULED = "gate_overruled"
"""Metric of a version that was published though the gate spoke against it: what it said."""
FEW_QUERIES = 30
"""Held-out images of old classes under which the estimate from stored vectors is looked at as well."""


def decided(
    gate: GateConfig,
    order: StageOrder,
    figures: Mapping[str, Any],
    artifacts: dict[str, ArtifactRef],
    rows: Sequence[str] = (),
) -> StageResult:
    """Return what the driver commits of a finished stage: its files and figures, and the refusal where there is one."""
    refusal = floor(gate, figures, order.renewed) if order.improves else verdict(gate, figures)
    of = order.version_id, order.parent, order.task
    if refusal is not None and order.anyway:
        return StageResult(*of, artifacts, tuple(rows), {**figures, OVERRULED: refusal})
    return StageResult(*of, artifacts, tuple(rows), dict(figures), refusal)


def verdict(gate: GateConfig, figures: Mapping[str, Any]) -> str | None:
    """Return why the stage must not be published, or None. Compares served Recall@1 with the parent's, split by split;
    that of old classes is estimated where few of their images are held out."""
    if not gate.enabled:
        return None
    metrics = VersionMetrics.read(figures)
    if metrics.task_spread is not None and metrics.task_spread < MIN_SPREAD:
        return "all images of the task are alike, so that its effect on old classes cannot be estimated"
    for split, form, bound in (
        ("new", "served", gate.max_new_loss),
        ("old", "served", gate.max_old_loss),
        ("old", "estimated", gate.max_old_loss_estimated),
    ):
        kind = "/estimated" if form == "estimated" else ""
        before = metrics.parent_recall_at_1.get(f"{split}{kind}")
        after = metrics.recall(split, form)
        if before is None or after is None:
            continue
        error = 0.0 if kind else metrics.change_error.get(split, 0.0)
        if before - after - gate.certainty * error > bound:
            return (
                f"{form} Recall@1 on {split} classes would fall from {before:.3f} to {after:.3f}, "
                f"by more than {bound:g}{_noise(error, metrics.queries.get(split))}"
            )
    return None


def floor(gate: GateConfig, figures: Mapping[str, Any], renewed: bool = False) -> str | None:
    """Return why a stage that improves what is learnt must not be published, or None.

    The version without it serves already, and cost seconds: it is the floor. A trunk that moved has to serve more, on
    all classes together; items that were embedded anew, no less than chance explains. Without held-out images the
    estimate from stored features decides. `renewed`: all that is stored is embedded anew by the moved trunk, so that it
    has to serve more once that is done, and until then, by its map, to lose no more than `max_old_loss`.
    """
    if not gate.enabled:
        return None
    metrics = VersionMetrics.read(figures)
    for form, kind in (("served", ""), ("estimated", "/estimated")):
        before, after = metrics.parent_recall_at_1.get(f"union{kind}"), metrics.recall("union", form)
        if before is None or after is None:
            continue
        error = metrics.change_error.get("union", 0.0) if form == "served" else 0.0
        noise = _noise(error, metrics.queries.get("union"))
        is_borne = before - after <= gate.max_old_loss + gate.certainty * error
        if metrics.kind == "renew" and is_borne:
            return None
        anew = metrics.recall("union", "reextracted") if renewed and form == "served" else None
        if anew is not None:
            if not is_borne:
                return (
                    f"Recall@1 over all classes would fall from {before:.3f} to {after:.3f} until all items are "
                    f"embedded anew, by more than {gate.max_old_loss:g}{noise}"
                )
            form, after, noise = "re-extracted", anew, ""
        if after > before:
            return None
        return (
            f"{form} Recall@1 over all classes would be {after:.3f}, which is not above the {before:.3f} of the "
            f"version without it{noise}"
        )
    if metrics.kind == "renew":
        return None
    return (
        "nothing shows that it serves more: no image is held out, and too few items are stored to estimate it"
    )


def _noise(error: float, queries: float | None) -> str:
    if not error or queries is None:
        return ""
    return f" (standard error {error:.3f}, {queries:.0f} held-out images)"
