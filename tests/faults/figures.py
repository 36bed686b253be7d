"""The figures of a fault run, or of several added up, out of their rows."""

from __future__ import annotations

from typing import Any

from tests.measured import percentile

Row = dict[str, Any]
SUMS = ("shards_lost", "learnt_twice", "indexed_twice", "phantom_items", "disagreements")
UNPASSED = "not passed"
SINGLE = ("driver", "worker", "rank_0", "indexer", "replica")
"""The roles that the bars of healing name."""


def figures(rows: list[Row]) -> dict[str, float | None]:
    """All of them; None for what was not measured."""
    kills = [row for row in rows if "slot" in row and row.get("verdict", UNPASSED) != UNPASSED]
    seen: dict[str, float | None] = {}
    if kills:
        seen |= {"kills": float(len(kills)), **_sums(rows), **_healing(kills), **_availability(rows)}
    points = [row for row in rows if row.get("part") == "crash"]
    if points:
        seen["crash_points"] = float(len(points))
        seen["crash_points_failed"] = float(sum(bool(row["failed"]) for row in points))
    resumed = [row for row in rows if row.get("part") == "resume"]
    if resumed:
        seen["resume_bit_identical"] = float(all(row["identical"] for row in resumed))
    faults = [row for row in rows if "fault" in row]
    if faults:
        seen["environment_faults"] = float(len(faults))
        seen["environment_faults_failed"] = float(sum(row["verdict"] != "ok" for row in faults))
    return seen


def _sums(rows: list[Row]) -> dict[str, float | None]:
    sums = [row for row in rows if row.get("sums")]
    return {name: float(sum(row[name] for row in sums)) for name in SUMS} if sums else {}


def _healing(kills: list[Row]) -> dict[str, float | None]:
    """Times of runs on a quiet machine, of kills that had no other in flight; the counts are of all runs."""
    timed = [row for row in kills if row.get("quiet") and not row.get("in_flight")]
    seen = {
        "kills_timed": float(len(timed)),
        "heal_s_p95": _p95(timed, "heal_s", SINGLE),
        "heal_to_step_s_p95": _p95([r for r in timed if r["slot"] == "training"], "heal_to_step_s"),
        "heal_s_p95_busy_or_several": _p95([r for r in kills if r not in timed], "heal_s", SINGLE),
        "not_healed": float(sum("heal_s" not in row and not row.get("killed_again") for row in kills)),
    }
    for role in sorted({row["role"] for row in kills}):
        seen[f"kills_{role}"] = float(sum(row["role"] == role for row in kills))
        seen[f"heal_s_p50_{role}"] = _quantile(timed, "heal_s", (role,), 50)
        seen[f"heal_s_p95_{role}"] = _p95(timed, "heal_s", (role,))
    return seen


def _p95(rows: list[Row], name: str, roles: tuple[str, ...] = ()) -> float | None:
    return _quantile(rows, name, roles, 95)


def _quantile(rows: list[Row], name: str, roles: tuple[str, ...], q: float) -> float | None:
    return percentile([row[name] for row in rows if name in row and (not roles or row["role"] in roles)], q)


def _availability(rows: list[Row]) -> dict[str, float | None]:
    """Of runs on a quiet machine that kill replicas alone, and of all runs."""
    sums = [row for row in rows if row.get("sums") and row["questions"]]
    replicas = [row for row in sums if row["only"] == ["replica"] and row["quiet"]]
    seen: dict[str, float | None] = {}
    for name, chosen in (("availability", replicas), ("availability_all_roles", sums)):
        asked = sum(row["questions"] for row in chosen)
        if asked:
            first = sum(row["answered_first"] for row in chosen)
            seen[f"{name}_first_try"] = first / asked
            seen[f"{name}_one_retry"] = (first + sum(row["answered_second"] for row in chosen)) / asked
    if replicas:
        seen["replica_kills_a_minute"] = sum(r["kills"] for r in replicas) / sum(
            r["minutes"] for r in replicas
        )
    return seen
