"""By what points of a map can be coloured: values of an attribute, and whether an item's neighbour is of its class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 200
"""An attribute of more values is a name of its own for each item, and no colour."""
MAX_NAMES = 50
_BLOCK = 1024


def attribute_names(texts: Sequence[str]) -> list[str]:
    """Return attributes, out of the JSON of each item, that tell groups of items apart."""
    values: dict[str, set[str]] = {}
    for text in set(texts):
        for name, value in json.loads(text or "{}").items():
            known = values.setdefault(name, set())
            if len(known) <= MAX_VALUES:
                known.add(str(value))
    return sorted(name for name, known in values.items() if 2 <= len(known) <= MAX_VALUES)[:MAX_NAMES]


def values_of(texts: Sequence[str], name: str) -> tuple[list[str], list[int]]:
    """Return the values of an attribute, the most frequent first, and for each item which one it has; -1 for none."""
    found = [json.loads(text or "{}").get(name) for text in texts]
    counts = Counter(str(value) for value in found if value is not None)
    names = sorted(counts, key=lambda value: (-counts[value], value))
    code = {value: at for at, value in enumerate(names)}
    return names, [-1 if value is None else code[str(value)] for value in found]


def neighbour_differs(vectors_Nd: NDArray[np.float32], class_names: Sequence[str]) -> NDArray[np.bool_]:
    """Return for each of these items whether the most similar other one of them is of another class: where a search
    errs. Vectors have length 1; an item alone in its class always differs."""
    _, labels = np.unique(np.asarray(class_names), return_inverse=True)
    differs = np.zeros(len(labels), dtype=bool)
    if len(labels) < 2:
        return differs
    for start in range(0, len(labels), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(labels)))
        scores = vectors_Nd[rows] @ vectors_Nd.T
        scores[np.arange(len(rows)), rows] = -np.inf
        differs[rows] = labels[scores.argmax(axis=1)] != labels[rows]
    return differs
