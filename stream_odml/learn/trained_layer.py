"""The linear layer that a trunk was trained behind, as a part of the head that is solved.

A first stage trains its trunk in front of a linear layer. What the layer learnt to tell apart is another opinion of
what counts than the class sums have, and both together find more, of known classes and of those to come, where there
are more classes than dimensions. Where the trunk moves, the layer follows as the gallery does.
"""

# D trunk feature   E entries of φ   d directions of the head   l rows of the layer

from __future__ import annotations

import numpy as np

from stream_odml.learn.drift import AffineMap, DriftMap, IdentityMap
from stream_odml.learn.eigen import leading
from stream_odml.learn.lift import Float64s


def no_layer(dim: int) -> Float64s:
    """Return what a trunk has that was trained behind no layer that is known, [0, D]."""
    return np.zeros((0, dim))


def with_layer(
    known_dE: Float64s, layer_lD: Float64s, weight: float, total_EE: Float64s, dim: int
) -> Float64s:
    """Return the known part with a layer of `weight` times its variance beside it, in the directions in which items
    differ most by both: at most [dim, E]. `total_EE`: scatter of all items."""
    layer_lE = np.zeros((len(layer_lD), len(total_EE)))
    layer_lE[:, : layer_lD.shape[1]] = layer_lD
    parts = [
        part * (share / variance) ** 0.5
        for part, share in ((known_dE, 1.0), (layer_lE, weight))
        if (variance := float(np.sum((part @ total_EE) * part))) > 0
    ]
    if not parts:
        return known_dE
    both_kE = np.concatenate(parts)
    _, mix_kd = leading(both_kE @ total_EE @ both_kE.T, min(dim, len(both_kE)))
    return np.ascontiguousarray(mix_kd.T @ both_kE)


def moved_layer(layer_lD: Float64s, backward: DriftMap) -> Float64s:
    """Return the layer of a trunk whose features `backward` takes to those of the trunk before: W h = W A h'. None is
    left where the map is not affine. What is constant says nothing, as heads compare features less their mean."""
    if isinstance(backward, IdentityMap) or not len(layer_lD):
        return layer_lD
    if not isinstance(backward, AffineMap):
        return no_layer(layer_lD.shape[1])
    moved_lD: Float64s = layer_lD @ backward.A
    return moved_lD
