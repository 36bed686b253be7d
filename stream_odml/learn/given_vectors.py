"""The trunk of a stream of vectors: the identity. Made without torch, whose import such a stream can do without."""

from __future__ import annotations

from dataclasses import asdict

from stream_odml.learn.packing import BadArtifact, pack, unpack
from stream_odml.learn.settings import EmbedderSpec


def identity_trunk(spec: EmbedderSpec) -> bytes:
    """Return what `embedder_to_bytes` gives for an embedder that takes vectors."""
    if not spec.takes_vectors or not spec.input_dim:
        raise ValueError(f"{spec} takes no vectors of a known length; expected backbone 'none' and input_dim")
    return pack("embedder", {}, spec=asdict(spec), architecture={})


def spec_of(trunk: bytes) -> EmbedderSpec:
    """Return the specification that a trunk or an embedder was built by. Raises BadArtifact."""
    _, _, meta = unpack(trunk, ("embedder",))
    try:
        return EmbedderSpec(**meta["spec"])
    except (KeyError, TypeError) as error:
        raise BadArtifact(f"an embedder that this release cannot rebuild: {error}") from error
