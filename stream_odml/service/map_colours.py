"""What a map shows of its points beside their place: values of an attribute, neighbours, and whether the nearest one is
of another class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_odml.search.exact import inner_product

MAX_VALUES = 200
"""An attribute of more values is a name of its own for each item, and no colour."""
MAX_NAMES = 50
Ints = NDArray[np.int64]


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


def nearest(vectors_Nd: NDArray[np.float32], k: int) -> Ints:
    """Return the numbers [N, k] of the most similar other ones of these items, the nearest first; -1 where there is
    none with a score above 0, as among items that are compared by different parts of a head. Vectors have length 1."""
    n = len(vectors_Nd)
    scores, found = inner_product(vectors_Nd, vectors_Nd, k + 1)
    # An item comes among its own neighbours, but not first where others are its equals.
    at = np.where(found == np.arange(n)[:, None], np.inf, np.arange(k + 1)[None])
    kept = np.sort(np.argsort(at, axis=1, kind="stable")[:, :k], axis=1)
    scores, found = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(found, kept, axis=1)
    return np.where(scores > 0, found, -1)


def neighbour_differs(nearest_N: Ints, class_names: Sequence[str]) -> NDArray[np.bool_]:
    """Return for each of these items whether the most similar other one of them is of another class: where a search
    errs. An item without a neighbour differs where there are others."""
    _, labels = np.unique(np.asarray(class_names), return_inverse=True)
    if len(labels) < 2:
        return np.zeros(len(labels), dtype=bool)
    return np.asarray((nearest_N < 0) | (labels[nearest_N] != labels))
