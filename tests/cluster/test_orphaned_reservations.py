"""A reservation that outlives its dead owner is given back; one that Ray would give back by itself needs no help."""

from __future__ import annotations

import os
import time

import pytest
import ray
from ray.util.placement_group import placement_group

from stream_odml.cluster.ray_compat import free_orphaned_placement_groups


class Controller:
    """Reserves as Ray Train's controller does, and dies."""

    def reserve(self) -> None:
        """Two workers of 0.4 CPU."""
        assert placement_group([{"CPU": 0.4}] * 2).wait(120)

    def die(self) -> None:
        """As by SIGKILL."""
        os._exit(1)


def free_cpus(expected: float, within_s: float = 60.0) -> float:
    """CPUs that nobody reserves, once they are as expected or time is over."""
    deadline = time.monotonic() + within_s
    while True:
        free = float(ray.available_resources().get("CPU", 0.0))
        if abs(free - expected) < 1e-6 or time.monotonic() > deadline:
            return free
        time.sleep(0.1)


@pytest.mark.ray
def test_what_a_killed_controller_reserved_is_free_again(ray_cpus: int) -> None:
    assert free_cpus(ray_cpus) == ray_cpus
    assert free_orphaned_placement_groups() == 0
    controller = ray.remote(num_cpus=0)(Controller).remote()
    ray.get(controller.reserve.remote())
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(controller.die.remote())
    # Ray keeps it while the job lives.
    assert free_cpus(ray_cpus, within_s=3.0) == pytest.approx(ray_cpus - 0.8)
    assert free_orphaned_placement_groups() == 1
    assert free_cpus(ray_cpus) == pytest.approx(ray_cpus)
    assert free_orphaned_placement_groups() == 0
