"""From one version's space into another's, along the tree: composed once, applied to many vectors in blocks.

Protects: whatever the number of stages between, an affine path costs one matrix product (composed in
float64), and a stored vector is rounded once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

from stream_odml.gallery.artifacts import BACKWARD, FORWARD
from stream_odml.gallery.tables import FloatArray
from stream_odml.gallery.versions import VersionTree
from stream_odml.learn.drift import DriftMap, IdentityMap, compose

BLOCK = 8192
"""Rows mapped at a time: bounds what is held beside input and output."""
STEPS_KEPT = 16
HEADS_KEPT = 2


def apply_into(drift: DriftMap, vectors: FloatArray, out: FloatArray) -> None:
    """Map float32 [n, d] into ``out`` [n, d], block by block; ``vectors`` is left as it is."""
    for start in range(0, len(vectors), BLOCK):
        out[start : start + BLOCK] = drift.apply(vectors[start : start + BLOCK])


class Mapper:
    """Drift maps between any two versions of a tree, kept for the latest heads. Safe for many threads."""

    def __init__(self, load: Callable[[str, str], DriftMap]) -> None:
        """``load(version_id, FORWARD or BACKWARD)`` gives the stored drift map of a version."""
        self._load = load
        self._steps: OrderedDict[tuple[str, str], DriftMap] = OrderedDict()
        self._into: OrderedDict[str, dict[str, DriftMap]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tree: VersionTree, start: str, end: str) -> DriftMap:
        """Backward maps from ``start`` up to the common ancestor, forward maps down to ``end``.

        Raises UnknownVersion when either is not in ``tree``.
        """
        path = tree.path(start, end)
        with self._lock:
            self._into.setdefault(end, {end: IdentityMap()})
            self._into.move_to_end(end)
            while len(self._into) > HEADS_KEPT:
                self._into.popitem(last=False)
            if start not in self._into[end]:
                self._compose(tree, path)
            return self._into[end][start]

    def keep(self, head: str) -> None:
        """Forget the maps into other heads: a map a version adds up, and the next head's are made from this one's."""
        with self._lock:
            self._into = OrderedDict({head: self._into[head]} if head in self._into else {})

    def _compose(self, tree: VersionTree, path: Sequence[str]) -> None:
        start, into_end = path[0], self._into[path[-1]]
        reached = next(i for i, version in enumerate(path) if version in into_end)
        extended = next((i for i in range(len(path) - 1, 0, -1) if start in self._into.get(path[i], {})), 0)
        if (
            extended and len(path) - 1 - extended < reached
        ):  # the last head's map, and the last stage after it
            rest = [self._step(tree, a, b) for a, b in pairwise(path[extended:])]
            into_end[start] = compose([self._into[path[extended]][start], *rest])
            return
        for i in range(reached - 1, -1, -1):
            into_end[path[i]] = compose([self._step(tree, path[i], path[i + 1]), into_end[path[i + 1]]])

    def _step(self, tree: VersionTree, a: str, b: str) -> DriftMap:
        if (a, b) not in self._steps:
            down = tree.get(b).parent == a
            self._steps[a, b] = self._load(b, FORWARD) if down else self._load(a, BACKWARD)
            while len(self._steps) > STEPS_KEPT:
                self._steps.popitem(last=False)
        return self._steps[a, b]
