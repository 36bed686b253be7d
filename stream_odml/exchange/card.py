"""The card of an exported model: what it is, what it was measured at, and how its vectors are compared."""

from __future__ import annotations

from stream_odml.exchange.rows import Gallery
from stream_odml.learn.given_vectors import spec_of
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.version_metrics import VersionMetrics

_LAYOUTS = {
    "whole": "The vector of an item is its embedding, of length 1.",
    "known": "The head knows the class of every item: the vector of an item is the known part of its embedding.",
    "full": "The vector of an item is its embedding, of which one part is zero (the known part of an item whose class "
    "the head does not know, the other part, scaled, of all others), and behind it the constant that the head adds for "
    "items of unknown classes. A query has both parts, and 1 behind them.",
}


def card_of(gallery: Gallery) -> str:
    """Return the card as Markdown, with the header that model hubs read."""
    store, version = gallery.store, gallery.store.tree.get(gallery.version)
    spec = spec_of(store.artifact(gallery.version, STUDENT))
    metrics = VersionMetrics.read(version.metrics)
    head = gallery.head
    recall = metrics.recall("union", "served")
    takes = (
        f"vectors of {spec.input_dim} float32 values, as the stream took them"
        if spec.takes_vectors
        else f"RGB images of {spec.image_size} x {spec.image_size} pixels, float32 in 0..1, channels first: scaled so "
        f"that the shorter side has {spec.image_size} pixels, then the centre; normalisation is in the model"
    )
    lines = [
        "---",
        "library_name: stream-odml",
        "pipeline_tag: image-feature-extraction",
        "tags: [metric-learning, retrieval, continual-learning]",
        "---",
        f"# {spec.backbone}, version {gallery.version}",
        "",
        f"An embedding model learnt by stream-odml: version `{gallery.version}` of stream `{store.stream_id}`.",
        "",
        "| | |",
        "|---|---|",
        f"| takes | {takes} |",
        f"| gives | vectors of {gallery.dim} values, to be compared by inner product |",
        f"| head | {spec.head}"
        + (f", which knows {len(head.names)} classes |" if head is not None else " |"),
        f"| items exported with it | {len(gallery)} |",
        f"| Recall@1 on held-out items | {'not measured' if recall is None else f'{recall:.3f}'} |",
        "",
        "## How vectors are compared",
        "",
        _LAYOUTS[gallery.layout] + " The inner product of a query and an item is the score of a search.",
        "",
        "Vectors of another version are of another space: never compare them with these.",
        "",
        "## Files",
        "",
        "`trunk.safetensors` holds weights and, in its header, the specification they belong to"
        + ("; `head.safetensors` the head's maps in float64. " if head is not None else ". ")
        + "`model.onnx`, if it was exported, takes the input named `input` and gives `embedding`.",
        "",
    ]
    return "\n".join(lines)
