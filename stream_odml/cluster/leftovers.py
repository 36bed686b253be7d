"""What a killed training run leaves reserved: the next one's reads would wait for it without a word, for ever."""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group


def free_reservations() -> int:
    """Remove the placement groups of this job, and say how many there were; call while no training run lives.

    Only training makes any. Ray removes those of a dead actor when its job has ended, too; Ray Train's own cleaner asks
    the dashboard whether its controller lives, and a session without a dashboard never gets an answer.
    """
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table()
    left = [name for name, group in groups.items() if name.endswith(job) and group["state"] != "REMOVED"]
    for name in left:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
    return len(left)
