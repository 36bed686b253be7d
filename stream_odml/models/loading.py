"""Loads the model of a version for whoever embeds with it: no process embeds by a model that fails its canaries."""

from __future__ import annotations

import contextlib

import torch

from stream_odml.learn.embedder import Embedder, build_embedder, embedder_from_bytes
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.models.canaries import TOLERANCE, Canaries, canaries_of, vectors_of
from stream_odml.models.diagnosis import diagnose
from stream_odml.models.mismatch import CanaryMismatch
from stream_odml.store.artifacts import CANARIES, STUDENT
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer

_refused: dict[tuple[str, ...], str] = {}
"""What this process refused, by the files' hashes: who follows a store asks again several times a second."""


def load_model(store: Store, version: str, device: str | torch.device = "cpu") -> Embedder:
    """Return a version's embedder, in evaluation mode. Raises CanaryMismatch, UnknownVersion, ArtifactCorrupt. A
    version that was committed without canaries is loaded unchecked; `check_at_start` adds them."""
    refs = store.tree.get(version).artifacts
    key = tuple(refs[name].sha256 for name in (STUDENT, CANARIES) if name in refs)
    if key in _refused:
        raise CanaryMismatch(_refused[key])
    embedder = embedder_from_bytes(store.artifact(version, STUDENT))
    if CANARIES not in refs:
        return embedder
    canaries = Canaries.from_bytes(store.artifact(version, CANARIES))
    try:
        check(canaries, embedder, f"version {version}", device)
    except CanaryMismatch as mismatch:
        _refused[key] = str(mismatch)
        raise
    return embedder


def check(canaries: Canaries, embedder: Embedder, what: str, device: str | torch.device = "cpu") -> float:
    """Return the deviation of a model's vectors from its canaries'. Raises CanaryMismatch where it is no rounding."""
    deviation = canaries.deviation(vectors_of(embedder, canaries.images, device=device))
    if deviation <= TOLERANCE:
        return deviation
    found = diagnose(canaries, embedder)
    fit = (
        f"they fit (to {found.deviation:.2g}) where "
        if found.fits
        else "no other way to read the images fits: "
    )
    raise CanaryMismatch(
        f"the model of {what} does not give the vectors that were stored of its {len(canaries.images)} canaries: they "
        f"differ by {deviation:.2g} of their spread, {TOLERANCE:g} is allowed. Most likely: {fit}{found.words}. "
        "Use the libraries, weights and preprocessing that the vectors were made with; nothing was embedded"
    )


def check_at_start(writer: Writer, spec: EmbedderSpec, seed: int) -> None:
    """Check the served version's model before a stream begins, and that its configuration names the weights that the
    root was made with. Raises CanaryMismatch. A version of an earlier release gets its canaries here."""
    store, head = writer.store, writer.tree.head
    if CANARIES not in writer.tree.get(head).artifacts:
        writer.replace_artifact(head, CANARIES, canaries_of(store.artifact(head, STUDENT)), "canaries")
    load_model(store, head)
    _check_weights(store, spec, seed)


def _check_weights(store: Store, spec: EmbedderSpec, seed: int) -> None:
    """Compare weights: only a model without a layer of random weights can tell, and only while the first version's
    files are kept."""
    root = store.tree.root
    if root is None or not spec.starts_pretrained or spec.head == "linear":
        return
    first = store.tree.get(root)
    if first.retired or CANARIES not in first.artifacts:
        return
    embedder = None
    with contextlib.suppress(ValueError, OSError):  # weights that are not there are not needed any more
        embedder = build_embedder(spec, seed).eval()
    if embedder is not None:
        canaries = Canaries.from_bytes(store.artifact(root, CANARIES))
        check(canaries, embedder, f"the configuration (weights {spec.weights or spec.backbone})")
