"""The error of a model that reads images otherwise than it did: apart from what finds it, which needs torch."""

from __future__ import annotations


class CanaryMismatch(ValueError):
    """A model does not give the vectors that it gave when it was stored."""
