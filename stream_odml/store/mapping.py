"""From one version's space into another's, along the tree: one map, composed of the stored ones on the way.

Protects: whatever the number of stages between, an affine path costs one matrix product (composed in
float64), and a stored vector is rounded once; and whatever the number of versions, few maps are held.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from stream_odml.learn.drift import DriftMap, IdentityMap, compose
from stream_odml.store.artifacts import BACKWARD, FORWARD
from stream_odml.store.recent import Recent
from stream_odml.store.versions import VersionTree

HEADS_KEPT = 2
ASKED_KEPT = 8
"""Maps into one head from the versions that were asked for last."""
WAYPOINTS = 8
"""Maps into one head from versions spread over the tree, from which any other is a part of the way."""
Joined = Callable[[str, str, DriftMap], DriftMap]


@dataclass
class _Held:
    """Maps into one head."""

    milestones: dict[str, DriftMap]
    asked: Recent[str, DriftMap] = field(default_factory=lambda: Recent(ASKED_KEPT))

    def find(self, version: str) -> DriftMap | None:
        return self.asked.find(version) or self.milestones.get(version)


class Mapper:
    """Drift maps between any two versions of a tree. Safe for many threads."""

    def __init__(self, load: Callable[[str, str], DriftMap]) -> None:
        """`load(version_id, FORWARD or BACKWARD)` gives the stored drift map of a version."""
        self._load = load
        self._held: Recent[str, _Held] = Recent(HEADS_KEPT)
        self._lock = threading.Lock()

    def get(self, tree: VersionTree, start: str, end: str) -> DriftMap:
        """Return backward maps from `start` up to the common ancestor, forward maps down to `end`. Raises
        UnknownVersion when either is not in `tree`."""
        path = tree.path(start, end)
        with self._lock:
            held = self._held.get(end, lambda: _Held({end: IdentityMap()}))
            steps, at = [], start
            for onward in path[1:]:
                if held.find(at) is not None:
                    break
                steps.append(self._step(tree, at, onward))
                at = onward
            return held.asked.keep(start, compose([*steps, held.find(at) or IdentityMap()]))

    def at_hand(self, start: str, end: str) -> bool:
        """Return whether `get` would read nothing."""
        held = self._held.find(end)
        return held is not None and held.find(start) is not None

    def into(self, tree: VersionTree, starts: Iterable[str], end: str) -> Iterator[tuple[str, DriftMap]]:
        """Yield the maps from each of `starts` into `end`, nearest first: composed on the way, and not kept. Those
        that queries asked for under the last head are kept for this one, and few others. UnknownVersion as above."""
        wanted = set(starts)
        with self._lock:
            last = None if end in self._held else self._held.find(next(iter(self._held), ""))
            asked = [name for name in last.asked if name in tree.versions] if last else []
        beyond = _beyond(tree, end, wanted.union(asked))
        stride = 1 + sum(map(len, beyond.values())) // WAYPOINTS
        held = _Held({end: IdentityMap()})
        walk = _spread(end, beyond, lambda at, far, drift: compose([self._step(tree, far, at), drift]))
        for place, (version, drift) in enumerate(walk):
            if version in asked:
                held.asked.keep(version, drift)
            elif place % stride == 0:
                held.milestones[version] = drift
            if version in wanted:
                yield version, drift
        self._held.get(end, lambda: held)

    def out_of(self, tree: VersionTree, start: str, ends: Iterable[str]) -> dict[str, DriftMap]:
        """Return the maps from `start` into each of `ends`. UnknownVersion as above."""
        wanted = set(ends)
        beyond = _beyond(tree, start, wanted)
        walk = _spread(start, beyond, lambda at, far, drift: compose([drift, self._step(tree, at, far)]))
        return {version: drift for version, drift in walk if version in wanted}

    def _step(self, tree: VersionTree, a: str, b: str) -> DriftMap:
        if tree.same_trunk(a, b):
            return IdentityMap()
        return self._load(b, FORWARD) if tree.get(b).parent == a else self._load(a, BACKWARD)


def _beyond(tree: VersionTree, centre: str, wanted: Iterable[str]) -> dict[str, list[str]]:
    """Return for each version on the ways from `wanted` to `centre` those of its neighbours that lie farther out."""
    down = dict(pairwise(tree.lineage(centre)))
    beyond: dict[str, list[str]] = defaultdict(list)
    seen = {centre}
    for version in wanted:
        at = tree.get(version).version_id
        while at not in seen:
            seen.add(at)
            nearer = down.get(at) or tree.get(at).parent
            assert nearer is not None, "a tree has one root, which is on every lineage"
            beyond[nearer].append(at)
            at = nearer
    return beyond


def _spread(centre: str, beyond: dict[str, list[str]], joined: Joined) -> Iterator[tuple[str, DriftMap]]:
    """Yield outward from `centre`: each version with its map, made from its neighbour's."""
    stack: list[tuple[str, DriftMap]] = [(centre, IdentityMap())]
    while stack:
        at, drift = stack.pop()
        yield at, drift
        stack += [(far, joined(at, far, drift)) for far in beyond.get(at, ())]
