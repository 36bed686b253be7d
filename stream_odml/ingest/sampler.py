"""P x K batches over all ranks: P classes, K images of each, a pure function of (seed, step).

Invariant: the global batch does not depend on the world size, and the ranks' slices laid end to end are the
global batch. So 1 rank and N ranks see the same images, and a resumed stage goes on with the same batches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class PKSampler:
    """Batches of `classes_per_batch` x `images_per_class` indices into `labels` [N] (any integers).

    Every class comes once in a pass over the classes, however few images it has, so imbalance does not starve the small
    ones. Images of a class within a batch differ while it has enough; a class of n < K images gives each of them
    floor(K/n) times or once more. With fewer than P classes each class fills several slots of K, and the batch keeps
    its size. The batch is ordered by slot, so each rank's slice holds whole slots: different classes.

    Raises ValueError: no two classes, P not a multiple of `world_size`, P or K less than 1.
    """

    def __init__(
        self,
        labels: NDArray[np.integer],
        classes_per_batch: int,
        images_per_class: int,
        seed: int,
        world_size: int = 1,
    ) -> None:
        if classes_per_batch < 1 or images_per_class < 1 or world_size < 1:
            raise ValueError(
                f"P={classes_per_batch}, K={images_per_class}, ranks={world_size}: expected at least 1 each"
            )
        if classes_per_batch % world_size:
            raise ValueError(
                f"{classes_per_batch} classes per batch do not divide over {world_size} ranks: use a multiple"
            )
        values, counts = np.unique(np.asarray(labels), return_counts=True)
        if len(values) < 2:
            raise ValueError(
                f"{len(values)} class among {len(labels)} images: two are needed to learn a metric"
            )
        self.P, self.K, self.seed, self.world_size = classes_per_batch, images_per_class, seed, world_size
        self._order = np.argsort(labels, kind="stable").astype(np.int64)
        self._counts = counts.astype(np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._counts)[:-1]))
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def batch(self, step: int) -> Indices:
        """Return global indices [P*K] of a step, slot by slot."""
        classes = self._classes(step)
        slots = -(-self.P // len(classes))
        chosen_CK = self._images(classes, slots * self.K, np.random.default_rng((self.seed, 1, step)))
        grid = chosen_CK.reshape(len(classes), slots, self.K).transpose(1, 0, 2)
        return grid.reshape(-1, self.K)[: self.P].reshape(-1)

    def slice(self, step: int, rank: int) -> Indices:
        """Return this rank's share [P*K / world_size] of the global batch. Raises ValueError for a rank that
        is not there."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} of {self.world_size}")
        share = self.P * self.K // self.world_size
        return self.batch(step)[rank * share : (rank + 1) * share]

    def _permute(self, cycle: int) -> Indices:
        return np.random.default_rng((self.seed, 0, cycle)).permutation(len(self._counts))

    def _classes(self, step: int) -> Indices:
        """Return p distinct classes, or all: the next of this pass, its last step filled up from its first."""
        cycle, at = divmod(step, -(-len(self._counts) // self.P))
        order = self._permutation(cycle)
        wanted = np.arange(at * self.P, at * self.P + min(self.P, len(order)))
        return order[wanted % len(order)]

    def _images(self, classes: Indices, count: int, random: np.random.Generator) -> Indices:
        """Return `count` images of each class [C, count], distinct where it has them (Floyd's algorithm)."""
        n_C = self._counts[classes]
        draws_CK = random.random((len(classes), count))
        chosen_CK = np.empty((len(classes), count), dtype=np.int64)
        for k in range(count):
            last_C = np.maximum(n_C - count + k, 0)
            draw_C = (draws_CK[:, k] * (last_C + 1)).astype(np.int64)
            taken_C = (chosen_CK[:, :k] == draw_C[:, None]).any(axis=1)
            chosen_CK[:, k] = np.where(taken_C, last_C, draw_C)
        around_CK = ((draws_CK[:, :1] * n_C[:, None]).astype(np.int64) + np.arange(count)) % n_C[:, None]
        chosen_CK = np.where((n_C >= count)[:, None], chosen_CK, around_CK)
        return self._order[self._starts[classes][:, None] + chosen_CK]
