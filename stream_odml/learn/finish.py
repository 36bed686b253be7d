"""The last pass of a stage: O and S embed each image of the task once; all else follows from sums over ranks."""

# n images of a batch   C older classes (bank)   c new classes   d embedding   W whitening transform [d, d]

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.learn.embedder import Embedder
from stream_odml.learn.geometry import kernel_weights, unit, weighted_mean
from stream_odml.learn.map_fit import AffineFit, KernelFit, MapFit
from stream_odml.learn.moments import PairMoments
from stream_odml.learn.row_buffer import Float32s, InMemoryBuffer, NewBuffer
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.whitening import error_whitening, within_class_whitening
from stream_odml.learn.world import World


class StageDiverged(ValueError):
    """The loss or the embeddings are not finite."""


@dataclass(frozen=True, eq=False)
class StageOutcome:
    """The result of a stage. All but `indices` and `embeddings` is the same on every rank."""

    student: Embedder
    bank: ClassBank
    forward: DriftMap
    """Parent's space -> child's."""
    backward: DriftMap
    """Child's space -> parent's."""
    indices: NDArray[np.int64]
    """Of this rank's images, as given."""
    embeddings: NDArray[np.float32]
    """Their raw g under the new model, [n_local, d]."""
    drift: dict[str, float] = field(default_factory=dict)
    """images; parent_variance (mean |g_O - mean|^2); drift_relative (|g_S - g_O| over |g_O|), forward_unexplained and
    bank_shift before the model is whitened; forward_error (mean square by which the forward map misses classes that it
    was not fitted to) after it."""
    layer_lD: NDArray[np.float64] | None = None
    """Weights of the linear layer that a first trunk was trained behind, where its head is solved."""


class FinishPass:
    """Collects the sums that move the bank, fit the drift maps and add the new classes."""

    def __init__(
        self,
        settings: StageSettings,
        bank: ClassBank,
        n_classes: int,
        dim: int,
        world: World,
        new_buffer: NewBuffer = InMemoryBuffer,
        *,
        is_base: bool = False,
    ) -> None:
        self._is_base = is_base  # a discriminant head has no bank that would say so
        self._settings, self._bank, self._world, self._dim = settings, bank, world, dim
        self._pairs = MapFit(dim)
        self._direction_Cd = torch.from_numpy(bank.directions).double()
        # Columns: sum w delta, sum w, sum |w|.
        self._move_C = torch.zeros(len(bank), dim + 2, dtype=torch.float64)
        # Columns: sum g, sum z, count.
        self._new_c = torch.zeros(n_classes, 2 * dim + 1, dtype=torch.float64)
        self._diverged = False
        # Only kernel maps need single pairs again; all else is sums.
        self._parents = new_buffer() if settings.gallery_map in ("kernel", "affine+kernel") else None
        self._children, self._new_buffer = new_buffer(), new_buffer
        self._labels: list[Tensor] = []
        self._indices: list[NDArray[np.int64]] = []

    @torch.inference_mode()
    def add(
        self, parent_nd: Tensor, child_nd: Tensor, labels_n: Tensor, indices_n: NDArray[np.int64]
    ) -> None:
        """Add raw g of n images under the parent and under the child; labels in 0..n_classes-1."""
        counts = [len(rows) for rows in (parent_nd, child_nd, labels_n, indices_n)]
        if len(set(counts)) > 1:
            raise ValueError(
                f"embeddings by both, labels and indices of {counts} images, expected as many of each"
            )
        if not bool(torch.isfinite(child_nd).all()):
            # `outcome` raises, on every rank alike: the others wait for this one there.
            self._diverged = True
            return
        n_classes = len(self._new_c)
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
        self._new_c.index_add_(0, labels_n.cpu(), _class_terms(child))
        if self._parents is not None:
            self._parents.append(parent.float().numpy())
        self._children.append(child.float().numpy())
        self._labels.append(labels_n.cpu())
        self._indices.append(np.asarray(indices_n, np.int64))

    def add_composites(self, parent_nd: Tensor, child_nd: Tensor, labels_n: Tensor) -> None:
        """Add raw g of composites, with the labels of their images: only the affine map is fitted to them."""
        if bool(torch.isfinite(child_nd).all()):
            self._pairs.add(parent_nd, child_nd, labels_n, composites=True)

    def outcome(self, student: Embedder, version: str, class_names: list[str]) -> StageOutcome:
        """Sum over ranks and return the result. Raises StageDiverged on every rank where one diverged."""
        if bool(self._world.sum(torch.tensor(float(self._diverged)))):
            raise StageDiverged(
                "the student's embeddings are not finite after its last step; "
                "lower learning_rate, or raise warmup_steps, and learn the task again from its parent"
            )
        pairs = self._pairs.summed(self._world)
        moments, has_pairs = pairs.of_images(), bool(pairs.of_images().n)
        is_affine = self._settings.gallery_map in ("affine", "affine+kernel")
        fitted = pairs.fitted(self._settings.ridge) if is_affine and has_pairs else None
        children, new_c = self._children.rows(self._dim), self._new_c
        W_dd = self._whitening(pairs, None if fitted is None else fitted.missed_dd, student)
        # Maps and bank are computed in the space that was learnt, then transformed by W, which is known exactly.
        bank, shift = self._moved_bank(moments, version, W_dd)
        drift = {**self._sizes(moments, fitted), "bank_shift": shift}
        if W_dd is not None:
            student.apply_linear(W_dd)
            children, new_c = self._transformed(children, W_dd)
            fitted = None if fitted is None else fitted.transformed(W_dd)
        sums_c = self._world.sum(new_c).numpy()
        counts = sums_c[:, -1].round().astype(np.int64)
        means = sums_c[:, :-1] / np.maximum(counts, 1)[:, None]
        bank = bank.with_classes(class_names, version, counts, means[:, : self._dim], means[:, self._dim :])
        forward, backward, error = self._maps(moments, fitted, children)
        # Without an older vector the map has nothing to miss.
        drift["forward_error"] = 0.0 if self._is_base else error
        indices = np.concatenate(self._indices) if self._indices else np.empty(0, np.int64)
        return StageOutcome(student, bank, forward, backward, indices, children, drift)

    def _whitening(self, pairs: MapFit, missed_dd: Tensor | None, student: Embedder) -> Tensor | None:
        """Return W: of a first stage by the scatter within classes, of a later one by the error of its map. None
        without a linear head to fold it into, and where the gallery's map has no linear part."""
        s, d = self._settings, self._dim
        images = pairs.of_images()
        sum_d, square_dd = images.sums[d:-1, -1], images.sums[d:-1, d:-1]
        if student.spec.head != "linear":
            return None
        if not len(self._bank):
            new_c = self._world.sum(self._new_c)
            return within_class_whitening(square_dd, new_c[:, :d], new_c[:, -1], s.whitening)
        if missed_dd is None or not pairs.can_hold_out or not s.error_whitening:
            return None
        return error_whitening(missed_dd, images.n, sum_d, square_dd, s.error_whitening)

    def _transformed(self, children_nd: Float32s, W_dd: Tensor) -> tuple[Float32s, Tensor]:
        """Return W g of every row, batch by batch in their order, and the sums by class of W g."""
        transformed, start = self._new_buffer(), 0
        new_c = torch.zeros_like(self._new_c)
        for labels_n in self._labels:
            rows_nd = torch.from_numpy(np.array(children_nd[start : start + len(labels_n)])).double() @ W_dd.T
            new_c.index_add_(0, labels_n, _class_terms(rows_nd))
            transformed.append(rows_nd.float().numpy())
            start += len(labels_n)
        return transformed.rows(self._dim), new_c

    def _moved_bank(
        self, moments: PairMoments, version: str, W_dd: Tensor | None = None
    ) -> tuple[ClassBank, float]:
        """Return the bank with m_c <- W (m_c + Σ_i w_ci delta_i / Σ_i w_ci), and the mean length of those moves."""
        move_C = self._world.sum(self._move_C)
        num, total, absolute = move_C[:, : self._dim], move_C[:, -2], move_C[:, -1]
        delta_Cd = weighted_mean(num, total, absolute, self._settings.kernel_floor, moments.mean_drift())
        shift = float(delta_Cd.norm(dim=1).mean()) if len(delta_Cd) else 0.0
        return self._bank.moved(delta_Cd.numpy(), version, None if W_dd is None else W_dd.numpy()), shift

    def _maps(
        self, moments: PairMoments, fitted: AffineFit | None, children_nd: Float32s
    ) -> tuple[DriftMap, DriftMap, float]:
        """Return the maps parent -> child and child -> parent, and the first one's error on held-out classes."""
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
        """Return the sizes of the drift, before whitening."""
        parent = float(moments.sums.diagonal()[: self._dim].sum())
        _, covariance = moments.mean_and_covariance()
        return {
            "images": moments.n,
            "parent_variance": max(float(covariance.diagonal()[: self._dim].sum()), 0.0),
            "drift_relative": (moments.drift() / parent) ** 0.5 if parent > 0 else 0.0,
            "forward_unexplained": 1.0 if fitted is None else moments.unexplained(fitted.forward),
        }


def _class_terms(child_nd: Tensor) -> Tensor:
    """Return [g, z, 1] of each row, the terms of the sums by class."""
    return torch.cat([child_nd, unit(child_nd), torch.ones(len(child_nd), 1, dtype=child_nd.dtype)], 1)
