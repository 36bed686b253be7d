"""A bound: the affine map that one would fit with images of the old classes, which the product never has."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.quality.data import ImageSet, Ints
from stream_odml.learn.drift import AffineMap
from stream_odml.learn.embedder import Embedder, embed
from stream_odml.learn.map_fit import MapFit

MAX_ROWS = 3_000
"""Images it is fitted to: many times the dimension."""


def oracle_map(images: ImageSet, rows: Ints, parent: Embedder, child: Embedder, device: str) -> AffineMap:
    """From the space of `parent` into that of `child`, by learnt images `rows` of old classes, every n-th of them; its
    ridge chosen as the gallery's is."""
    chosen = rows[:: -(-len(rows) // MAX_ROWS)]
    pairs = [torch.from_numpy(embed(model, images.pixels[chosen], device)) for model in (parent, child)]
    _, labels = np.unique(images.labels[chosen], return_inverse=True)
    fit = MapFit(parent.spec.dim)
    fit.add(pairs[0], pairs[1], torch.from_numpy(labels.astype(np.int64)))
    return fit.fitted(None).forward
