"""The last pass of a stage: one look at the task's images by O and S, everything else from sums over
ranks."""

# n images of a batch   C older classes (bank)   c new classes   d embedding   m kernel anchors

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import AffineMap, DriftMap, IdentityMap, KernelMap
from stream_odml.learn.embedder import Embedder, as_images
from stream_odml.learn.geometry import unit
from stream_odml.learn.kept import Float32s, InMemory, Room
from stream_odml.learn.kernels import kernel_weights, weighted_mean
from stream_odml.learn.map_fit import MapFit
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
        # Sums of w g_child, w g_parent, w, |w|.
        self._move_C = torch.zeros(len(bank), 2 * dim + 2, dtype=torch.float64)
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
            [w_nC.T @ child, w_nC.T @ parent, w_nC.sum(0)[:, None], w_nC.abs().sum(0)[:, None]], 1
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
        children = self._children.rows(self._dim)
        W_dd = self._whitening(pairs, student)
        if W_dd is not None:
            student.turn(W_dd)
            pairs = pairs.with_child(W_dd)
            children = self._turned(children, W_dd)
        moments = pairs.of_images()
        bank, shift = self._moved_bank(moments, version)
        birth_c = self._world.sum(self._birth_c).numpy()
        counts = birth_c[:, -1].round().astype(np.int64)
        means = birth_c[:, :-1] / np.maximum(counts, 1)[:, None]
        bank = bank.born(class_names, version, counts, means[:, : self._dim], means[:, self._dim :])
        parents = children[:0] if self._parents is None else self._parents.rows(self._dim)
        forward = self._map(pairs, parents, children, backward=False)
        backward = self._map(pairs, children, parents, backward=True)
        indices = np.concatenate(self._indices) if self._indices else np.empty(0, np.int64)
        drift = {**self._sizes(moments, forward), "bank_shift": shift, "forward_error": self._error(pairs)}
        return StageOutcome(student, bank, forward, backward, indices, children, drift)

    def _whitening(self, pairs: MapFit, student: Embedder) -> Tensor | None:
        """Of a first stage by what differs within its classes, of a later one by what its map misses; none where no
        head can take it or no stored vector could follow."""
        s, d = self._settings, self._dim
        images = pairs.of_images()
        if student.spec.head != "linear":
            return None
        if not len(self._bank):
            birth_c = self._world.sum(self._birth_c)
            return within_class_whitening(
                images.square_2d2d[d:, d:], birth_c[:, :d], birth_c[:, -1], s.whitening
            )
        if not s.error_whitening or s.gallery_map not in ("affine", "affine+kernel"):
            return None
        if not pairs.can_hold_out:
            return None
        return error_whitening(
            pairs.held_out_matrix(s.ridge),
            images.n,
            images.sum_2d[d:],
            images.square_2d2d[d:, d:],
            s.error_whitening,
        )

    def _turned(self, children_nd: Float32s, W_dd: Tensor) -> Float32s:
        """W g of every row, batch by batch as they came, and the sums for bank and births of them."""
        turned, start = self._room(), 0
        self._move_C[:, : self._dim] @= W_dd.T
        self._birth_c.zero_()
        for labels_n in self._labels:
            rows_nd = torch.from_numpy(np.array(children_nd[start : start + len(labels_n)])).double() @ W_dd.T
            self._birth_c.index_add_(0, labels_n, _births(rows_nd))
            turned.append(rows_nd.float().numpy())
            start += len(labels_n)
        return turned.rows(self._dim)

    def _moved_bank(self, moments: PairMoments, version: str) -> tuple[ClassBank, float]:
        """m_c += sum_i w_ci delta_i / sum_i w_ci, and the mean length of those moves."""
        move_C = self._world.sum(self._move_C)
        num = move_C[:, : self._dim] - move_C[:, self._dim : -2]
        total, absolute = move_C[:, -2], move_C[:, -1]
        delta_Cd = weighted_mean(num, total, absolute, self._settings.kernel_floor, moments.mean_drift())
        shift = float(delta_Cd.norm(dim=1).mean()) if len(delta_Cd) else 0.0
        return self._bank.moved(delta_Cd.numpy(), version), shift

    def _map(self, pairs: MapFit, x_nd: Float32s, y_nd: Float32s, *, backward: bool) -> DriftMap:
        s = self._settings
        images = int(pairs.of_images().n)
        if s.gallery_map == "identity" or images == 0:
            return IdentityMap()
        affine = pairs.fit(s.ridge, backward=backward)
        if s.gallery_map == "affine":
            return affine
        base: AffineMap | None = affine if s.gallery_map == "affine+kernel" else None
        x_md, y_md = self._anchors(x_nd, images), self._anchors(y_nd, images)
        start = base.apply(x_md) if base else x_md
        return KernelMap(x_md, y_md - start, base, s.kernel, s.kernel_width, s.kernel_floor)

    def _error(self, pairs: MapFit) -> float:
        if pairs.of_images().n == 0 or len(self._bank) == 0:
            return 0.0
        return pairs.held_out_error(self._settings.ridge)

    def _anchors(self, rows_nd: Float32s, total: int) -> NDArray[np.float32]:
        """Every k-th row of each rank, from all ranks: at most `kernel_anchors`, and a row more a rank."""
        stride = -(-total // self._settings.kernel_anchors)
        mine = torch.from_numpy(np.array(rows_nd[::stride]))  # copied out of a memory map, read-only perhaps
        rows = self._world.gather(mine.to(self._world.device))
        return rows.cpu().numpy()

    def _sizes(self, moments: PairMoments, forward: DriftMap) -> dict[str, float]:
        d = self._dim
        square = moments.square_2d2d
        parent, child, cross = (float(b.trace()) for b in (square[:d, :d], square[d:, d:], square[:d, d:]))
        drift = max(parent + child - 2 * cross, 0.0)
        base = forward.base if isinstance(forward, KernelMap) else forward
        unexplained = moments.unexplained(base) if isinstance(base, AffineMap) else 1.0
        return {
            "images": moments.n,
            "drift_relative": (drift / parent) ** 0.5 if parent > 0 else 0.0,
            "forward_unexplained": unexplained,
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
