"""A reservation that outlives its dead owner is given back; one that Ray would give back by itself needs no help."""

from __future__ import annotations

import os
import time

import pytest
import ray
from ray.util.placement_group import placement_group

from stream_odml.cluster.ray_compat import free_orphaned_placement_groups
from stream_odml.cluster.runtime import ray_session


class Controller:
    """Reserves as Ray Train's controller does, and dies."""

    def reserve(self) -> None:
        """Two workers of 0.4 CPU."""
        assert placement_group([{"CPU": 0.4}] * 2).wait(30)

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
def test_what_a_killed_controller_reserved_is_free_again() -> None:
    with ray_session(None, cpus=2, gpus=0):
        assert free_orphaned_placement_groups() == 0
        controller = ray.remote(num_cpus=0)(Controller).remote()
        ray.get(controller.reserve.remote())
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(controller.die.remote())
        assert free_cpus(2.0, within_s=3.0) == pytest.approx(1.2)  # Ray keeps it while the job lives
        assert free_orphaned_placement_groups() == 1
        assert free_cpus(2.0) == pytest.approx(2.0)
        assert free_orphaned_placement_groups() == 0
