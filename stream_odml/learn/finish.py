"""The last pass of a stage: one look at the task's images by O and S, everything else from sums over
ranks."""

# n images of a batch   C older classes (bank)   c new classes   d embedding

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.learn.embedder import Embedder, as_images
from stream_odml.learn.geometry import unit
from stream_odml.learn.kept import Float32s, InMemory, Room
from stream_odml.learn.kernel_fit import KernelFit
from stream_odml.learn.kernels import kernel_weights, weighted_mean
from stream_odml.learn.map_fit import AffineFit, MapFit
from stream_odml.learn.moments import PairMoments
from stream_odml.learn.outcome import StageDiverged, StageOutcome
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.views import LastPassViews
from stream_odml.learn.whitening import error_whitening, within_class_whitening
from stream_odml.learn.world import World

Batch = tuple[NDArray[np.uint8] | Tensor, NDArray[np.int64] | Tensor, NDArray[np.int64] | Tensor]


class FinishPass:
    """Collects what moves the bank, fits the maps and births the new classes."""

    def __init__(
        self,
        settings: StageSettings,
        bank: ClassBank,
        n_classes: int,
        dim: int,
        world: World,
        room: Room = InMemory,
    ) -> None:
        self._settings, self._bank, self._world, self._dim = settings, bank, world, dim
        self._pairs = MapFit(dim)
        self._direction_Cd = torch.from_numpy(bank.directions).double()
        self._move_C = torch.zeros(len(bank), dim + 2, dtype=torch.float64)  # sum w delta, sum w, sum |w|
        self._birth_c = torch.zeros(n_classes, 2 * dim + 1, dtype=torch.float64)  # sum g, sum z, count
        self._diverged = False
        # Only kernel maps look at single pairs again; all else is sums.
        self._parents = room() if settings.gallery_map in ("kernel", "affine+kernel") else None
        self._children, self._room = room(), room
        self._labels: list[Tensor] = []
        self._indices: list[NDArray[np.int64]] = []

    @torch.inference_mode()
    def add(
        self, parent_nd: Tensor, child_nd: Tensor, labels_n: Tensor, indices_n: NDArray[np.int64]
    ) -> None:
        """Raw g of n images under the parent and under the child; labels in 0..n_classes-1."""
        counts = [len(rows) for rows in (parent_nd, child_nd, labels_n, indices_n)]
        if len(set(counts)) > 1:
            raise ValueError(
                f"embeddings by both, labels and indices of {counts} images, expected as many of each"
            )
        if not bool(torch.isfinite(child_nd).all()):
            self._diverged = True  # told in `outcome`, on every rank alike: the others wait there
            return
        n_classes = len(self._birth_c)
        if len(labels_n) and not 0 <= int(labels_n.min()) <= int(labels_n.max()) < n_classes:
            raise ValueError(
                f"labels {int(labels_n.min())}..{int(labels_n.max())}, expected 0..{n_classes - 1}"
            )
        parent, child = parent_nd.double().cpu(), child_nd.double().cpu()
        self._pairs.add(parent, child, labels_n)
        s = self._settings
        w_nC = kernel_weights(unit(parent), self._direction_Cd, s.kernel, s.kernel_width)
        self._move_C += torch.cat(
            [w_nC.T @ (child - parent), w_nC.sum(0)[:, None], w_nC.abs().sum(0)[:, None]], 1
        )
        self._birth_c.index_add_(0, labels_n.cpu(), _births(child))
        if self._parents is not None:
            self._parents.append(parent.float().numpy())
        self._children.append(child.float().numpy())
        self._labels.append(labels_n.cpu())
        self._indices.append(np.asarray(indices_n, np.int64))

    def add_views(self, parent_nd: Tensor, child_nd: Tensor, labels_n: Tensor) -> None:
        """Raw g of wide views of n images, with the labels of those: only the affine map looks at them."""
        if bool(torch.isfinite(child_nd).all()):
            self._pairs.add(parent_nd, child_nd, labels_n, views=True)

    def outcome(self, student: Embedder, version: str, class_names: list[str]) -> StageOutcome:
        """Sums over ranks, and what follows from them. Raises StageDiverged on every rank when one diverged."""
        if bool(self._world.sum(torch.tensor(float(self._diverged)))):
            raise StageDiverged(
                "the student's embeddings are not finite after its last step; "
                "lower learning_rate, or raise warmup_steps, and learn the task again from its parent"
            )
        pairs = self._pairs.summed(self._world)
        moments, fitted = pairs.of_images(), self._affine(pairs)
        children, birth_c = self._children.rows(self._dim), self._birth_c
        W_dd = self._whitening(pairs, None if fitted is None else fitted.missed_dd, student)
        # What is fitted and moved is so in the space that was learnt, and turned after it: W is known exactly.
        bank, shift = self._moved_bank(moments, version, W_dd)
        drift = {**self._sizes(moments, fitted), "bank_shift": shift}
        if W_dd is not None:
            student.turn(W_dd)
            children, birth_c = self._turned(children, W_dd)
            fitted = None if fitted is None else fitted.turned(W_dd)
        sums_c = self._world.sum(birth_c).numpy()
        counts = sums_c[:, -1].round().astype(np.int64)
        means = sums_c[:, :-1] / np.maximum(counts, 1)[:, None]
        bank = bank.born(class_names, version, counts, means[:, : self._dim], means[:, self._dim :])
        forward, backward, error = self._maps(moments, fitted, children)
        # No older vector, nothing to miss.
        drift["forward_error"] = error if len(self._bank) else 0.0
        indices = np.concatenate(self._indices) if self._indices else np.empty(0, np.int64)
        return StageOutcome(student, bank, forward, backward, indices, children, drift)

    @property
    def _maps_affinely(self) -> bool:
        return self._settings.gallery_map in ("affine", "affine+kernel")

    def _affine(self, pairs: MapFit) -> AffineFit | None:
        """None where there is no pair, or none is to be mapped so."""
        if not (self._maps_affinely and pairs.of_images().n):
            return None
        return pairs.fitted(self._settings.ridge)

    def _whitening(self, pairs: MapFit, missed_dd: Tensor | None, student: Embedder) -> Tensor | None:
        """W of a first stage by what differs within its classes, of a later one by what its map misses; none without a
        head to take it, nor where the gallery's map has no linear part, as W is one."""
        s, d = self._settings, self._dim
        images = pairs.of_images()
        square_dd = images.square_2d2d[d:, d:]
        if student.spec.head != "linear":
            return None
        if not len(self._bank):
            birth_c = self._world.sum(self._birth_c)
            return within_class_whitening(square_dd, birth_c[:, :d], birth_c[:, -1], s.whitening)
        if missed_dd is None or not pairs.can_hold_out or not s.error_whitening:
            return None
        return error_whitening(missed_dd, images.n, images.sum_2d[d:], square_dd, s.error_whitening)

    def _turned(self, children_nd: Float32s, W_dd: Tensor) -> tuple[Float32s, Tensor]:
        """W g of every row, batch by batch as they came, and the sums by class of those."""
        turned, start = self._room(), 0
        birth_c = torch.zeros_like(self._birth_c)
        for labels_n in self._labels:
            rows_nd = torch.from_numpy(np.array(children_nd[start : start + len(labels_n)])).double() @ W_dd.T
            birth_c.index_add_(0, labels_n, _births(rows_nd))
            turned.append(rows_nd.float().numpy())
            start += len(labels_n)
        return turned.rows(self._dim), birth_c

    def _moved_bank(
        self, moments: PairMoments, version: str, W_dd: Tensor | None = None
    ) -> tuple[ClassBank, float]:
        """m_c += sum_i w_ci delta_i / sum_i w_ci, then turned by W, and the mean length of those moves."""
        move_C = self._world.sum(self._move_C)
        num, total, absolute = move_C[:, : self._dim], move_C[:, -2], move_C[:, -1]
        delta_Cd = weighted_mean(num, total, absolute, self._settings.kernel_floor, moments.mean_drift())
        shift = float(delta_Cd.norm(dim=1).mean()) if len(delta_Cd) else 0.0
        return self._bank.moved(delta_Cd.numpy(), version, None if W_dd is None else W_dd.numpy()), shift

    def _maps(
        self, moments: PairMoments, fitted: AffineFit | None, children_nd: Float32s
    ) -> tuple[DriftMap, DriftMap, float]:
        """Parent -> child, child -> parent, and by what mean square the first misses classes it was not fitted to."""
        s, images = self._settings, int(moments.n)
        if s.gallery_map == "identity" or images == 0:
            return IdentityMap(), IdentityMap(), moments.drift() / max(images, 1)
        if fitted is not None and s.gallery_map == "affine":
            return fitted.forward, fitted.backward, float(fitted.missed_dd.trace())
        parents_nd = children_nd[:0] if self._parents is None else self._parents.rows(self._dim)
        labels_n = torch.cat([torch.empty(0, dtype=torch.int64), *self._labels])
        kernel = KernelFit.gathered(s, parents_nd, children_nd, labels_n, images, self._world)
        forward, backward = (None, None) if fitted is None else (fitted.forward, fitted.backward)
        return kernel.fit(forward), kernel.fit(backward, backward=True), kernel.held_out_error(forward)

    def _sizes(self, moments: PairMoments, fitted: AffineFit | None) -> dict[str, float]:
        """Of what was learnt, before it is turned."""
        parent = float(moments.square_2d2d.diagonal()[: self._dim].sum())
        n, sum_d = max(moments.n, 1.0), moments.sum_2d[: self._dim]
        return {
            "images": moments.n,
            "parent_variance": max(parent / n - float((sum_d / n).square().sum()), 0.0),
            "drift_relative": (moments.drift() / parent) ** 0.5 if parent > 0 else 0.0,
            "forward_unexplained": 1.0 if fitted is None else moments.unexplained(fitted.forward),
        }


def _births(child_nd: Tensor) -> Tensor:
    """What the sums by class are of: [g, z, 1]."""
    return torch.cat([child_nd, unit(child_nd), torch.ones(len(child_nd), 1, dtype=child_nd.dtype)], 1)


def run_finish(
    finish: FinishPass,
    batches: Iterable[Batch],
    parent: Callable[[Tensor], Tensor],
    child: Embedder,
    device: torch.device,
    views: LastPassViews,
) -> None:
    """Feeds (pixels uint8 [n,H,W,3], labels [n], indices [n]) to the pass, in evaluation mode and
    unaugmented, and wide views of them."""
    with torch.inference_mode():
        for pixels, labels, indices in batches:
            images, labels_n = as_images(pixels, device), torch.as_tensor(labels).long()
            finish.add(parent(images), child(images), labels_n, np.asarray(indices))
            for seen, row_n in views.of(images, np.asarray(indices)):
                finish.add_views(parent(seen), child(seen), labels_n[row_n])
