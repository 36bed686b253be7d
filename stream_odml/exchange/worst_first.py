"""Which shards of a root that was taken over by a map gain most from being embedded again.

An item is predicted the worse, the fewer images of its class the map has seen; with every shard that is embedded again
its classes need the next one less.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping


def shard_errors(
    mapped: Mapping[str, Mapping[str, int]], rows: Mapping[str, int], seen: Mapping[str, int], error: float
) -> dict[str, float]:
    """Return the error of each shard, so that the highest is to be embedded again first: the mean over its items of
    `error` / (1 + images seen of their class), where those of shards before it count as seen.

    `mapped`: by shard, mapped items of each class; `rows`: by shard, all items; `seen`: images of each class that are
    exact. Shards without mapped items have no error.
    """
    known, found = Counter(seen), dict[str, float]()

    def need(shard: str) -> float:
        total = sum(count / (1 + known[name]) for name, count in mapped[shard].items())
        return error * total / max(1, rows[shard])

    queue = [(-need(shard), place, shard) for place, shard in enumerate(mapped) if mapped[shard]]
    heapq.heapify(queue)
    while queue:
        _, place, shard = heapq.heappop(queue)
        now = need(shard)  # never more than when it was queued
        if queue and now < -queue[0][0]:
            heapq.heappush(queue, (-now, place, shard))
            continue
        found[shard] = now
        known.update(mapped[shard])
    return {shard: found.get(shard, 0.0) for shard in mapped}
