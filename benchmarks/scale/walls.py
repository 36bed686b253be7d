"""The target, what is bearable there, and what to do about each wall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.scale.laws import Law

TARGET: Mapping[str, float] = {"classes": 1e5, "vectors": 1e9, "nodes": 100}
ROWS_A_SHARD, CLASSES_A_STAGE, COMMITS_A_ROUND = 1000, 100, 1000
GRADIENT_BYTES = 2 * 4 * 180_000
"""Student and peer of the default net, in float32."""


@dataclass(frozen=True)
class Wall:
    """`limit` of a law at the target, and what to do when it is reached."""

    law: str
    limit: float
    why: str
    remedy: str


WALLS = (
    Wall("memory_gib", 128, "a replica holds the whole gallery; a node of 128 GiB",
         "several services, each over the classes of its own root, asked together; `search: fp16` halves it"),
    Wall("load_s", 600, "a replica that starts is of no use before it has loaded",
         "several roots; keep replicas (two at least) rather than start them"),
    Wall("stage_swap_s", 60, "each commit maps every vector in every replica; alerts count a minute as stale",
         "several roots; `search_threads` on cores of their own; larger, rarer stages"),
    Wall("exact_query_s", 0.1, "an exact query reads every vector",
         "nothing: `search: auto` answers approximately above `approximate_above` (ivf, 0.4 ms at a million)"),
    Wall("bank_step_s", 0.15, "the step of the default net itself",
         "train on a GPU; sample the bank's directions a step; `weight_repel: 0`"),
    Wall("exchange_s", 0.15, "the step of the default net itself",
         "fewer, larger workers (a GPU each): one stage of a small net needs no 100 ranks"),
    Wall("poll_s", 5, "new shards should be seen within seconds",
         "let producers write a Delta table (`source.kind: delta`), or clear landed shards once they are learnt"),
    Wall("ledger_replay_s", 60, "a driver that restarts replays the ledger",
         "larger shards: the cost is by shard, not by image"),
    Wall("commit_s", 1, "one commit for up to `ingest.batch_shards` shards",
         "maintenance by `store.maintain_every_rows` keeps tables short; larger shards"),
    Wall("compose_s", 60, "a reader that starts composes the maps of every version",
         "larger, rarer stages"),
)  # fmt: skip


def sizes_at(share: float) -> dict[str, float]:
    """All sizes at a share of the target."""
    vectors, classes = share * TARGET["vectors"], share * TARGET["classes"]
    return {
        "vectors": vectors,
        "classes": classes,
        "ranks": max(2.0, share * TARGET["nodes"]),
        "bytes": GRADIENT_BYTES,
        "shards": vectors / ROWS_A_SHARD,
        "versions": max(1.0, classes / CLASSES_A_STAGE),
        "commits": min(vectors / ROWS_A_SHARD, COMMITS_A_ROUND),
    }


def reached_at(law: Law, limit: float) -> float:
    """Share of the target at which a law reaches its limit, up to 1000 times the target."""
    low, high = 1e-9, 1e3
    if law.at(**sizes_at(high)) < limit:
        return high
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if law.at(**sizes_at(middle)) >= limit else (middle, high)
    return high


def in_order(laws: Sequence[Law]) -> list[dict[str, object]]:
    """A row a wall, the nearest first."""
    by_name = {law.name: law for law in laws}
    rows: list[dict[str, object]] = []
    for wall in WALLS:
        law = by_name[wall.law]
        share = reached_at(law, wall.limit)
        rows.append(
            {
                "part": "wall", "what": wall.law, "unit": law.unit, "limit": wall.limit, "why": wall.why,
                "at_target": law.at(**sizes_at(1.0)), "reached_at_share": share,
                "reached_at_vectors": share * TARGET["vectors"], "remedy": wall.remedy,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: float(str(row["reached_at_share"])))
