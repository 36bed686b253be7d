"""Which stages are published: bounds of the quality gate."""

from __future__ import annotations

from pydantic import Field

from stream_odml.config.section import Section


class GateConfig(Section):
    """Which stages are published. A refused stage is learnt again with stronger distillation, then skipped."""

    enabled: bool = True
    """Compare every stage with the version it would replace, on held-out images; with few or none, old classes by an
    estimate from their stored vectors and the drift map."""
    certainty: float = Field(1.64, ge=0, le=10)
    """Standard errors by which a loss must exceed its bound to be refused: few images measure a loss inexactly. 1.64
    refuses one in twenty by chance; 0 takes every figure as exact."""
    max_new_loss: float = Field(0.05, ge=0, le=1)
    """Refuse when Recall@1 on the stage's own held-out images falls by more than this."""
    max_old_loss: float = Field(0.05, ge=0, le=1)
    """Refuse when Recall@1 on older classes' held-out images falls by more than this; where a moved trunk embeds
    everything anew, on all of them, until that is done."""
    max_old_loss_estimated: float = Field(0.15, ge=0, le=1)
    """The same bound without held-out images, on an estimate from stored vectors. These are of images that were learnt,
    lie closer together than others and suffer more from a map's error: it stops disasters, not small losses."""
    retries: int = Field(1, ge=0, le=10)
    """Further attempts at a refused stage before its task is skipped."""
