"""Tells Ray what the stream's own actors hold, where the number of training workers follows what the cluster has.

Ray's coordinator gives an elastic group whole nodes, whoever else lives there. With a node lost, the group would wait
for ever for a place that indexers and replicas have. What they ask for is reserved first, under a name of its own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence

from stream_odml.cluster.placement import Role
from stream_odml.cluster.ray_compat import give_back, reserve

log = logging.getLogger(__name__)
EVERY_S, EXPIRE_S = 30.0, 120.0
ANSWER_S = 10.0


class ReservedResources:
    """Reserves what `roles` ask for until `release`; asked anew now and then: the coordinator may restart."""

    def __init__(self, name: str, roles: Sequence[Role]) -> None:
        """Return when the coordinator has taken it, or did not answer: then it is asked again, after one warning."""
        self._name = f"stream-odml-{name}"
        each = [({"CPU": role.cpus, "GPU": role.gpus}, role.count) for role in roles]
        asked = [({unit: amount for unit, amount in wants.items() if amount}, count) for wants, count in each]
        self._bundles = [bundle for bundle, count in asked for _ in range(count) if bundle]
        self._released = threading.Event()
        self._is_taken = True
        self._ask()
        threading.Thread(target=self._renew, name="reserved resources", daemon=True).start()

    def release(self) -> None:
        """Give it back."""
        self._released.set()
        with contextlib.suppress(Exception):  # Ray may have ended, and the reservation with it
            give_back(self._name, ANSWER_S)

    def _renew(self) -> None:
        while not self._released.wait(EVERY_S):
            self._ask()

    def _ask(self) -> None:
        was_taken, self._is_taken = self._is_taken, False
        try:
            reserve(self._name, self._bundles, EXPIRE_S, ANSWER_S)
            self._is_taken = True
        except Exception as error:  # busy; or another Ray, whose inside is another: training goes on without
            if was_taken:
                log.warning(
                    "what indexers and replicas hold is not reserved (%s: %s)", type(error).__name__, error
                )
