"""Virtual features: what a model that nobody holds any more would have said of a new image."""

# B global batch   C classes born at one stage   d embedding

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.geometry import unit
from stream_odml.learn.kernels import kernel_mean, kernel_weights
from stream_odml.learn.settings import StageSettings


def virtual_births(bank: ClassBank) -> list[str]:
    """The versions that virtual features stand for: those of birth, save the parent itself, which is
    at hand."""
    return [birth for birth in bank.births_in_order() if birth != bank.version]


class VirtualFeatures:
    """V_k for every older version k, estimated from the old model's g, by the bank's kernel or by
    backward maps."""

    def __init__(
        self,
        bank: ClassBank,
        settings: StageSettings,
        backward_maps: Mapping[str, DriftMap],
        device: torch.device,
    ) -> None:
        """`backward_maps`: version of birth -> composed map from the parent's space to it; for
        virtual='affine'."""
        self._settings = settings
        self._births = virtual_births(bank) if settings.weight_virtual > 0 else []
        self._maps = backward_maps
        if settings.virtual == "affine":
            missing = [birth for birth in self._births if birth not in backward_maps]
            if missing:
                raise ValueError(
                    f"virtual: affine needs a backward map to {', '.join(missing)}; "
                    "pass the composed maps, or set virtual: kernel"
                )
        self._banks: list[tuple[Tensor, Tensor]] = []
        for birth in self._births:
            rows = bank.rows_born_at(birth)
            drift = bank.means[rows] - bank.birth_means[rows]
            self._banks.append(
                (torch.from_numpy(bank.directions[rows]).to(device), torch.from_numpy(drift).to(device))
            )

    def __len__(self) -> int:
        return len(self._births)

    @torch.no_grad()
    def __call__(self, old_Bd: Tensor) -> list[Tensor]:
        """Raw g_O [B, d] -> V_k [B, d] for each older version, unit rows, no gradient."""
        if self._settings.virtual == "affine":
            g = old_Bd.cpu().numpy()
            mapped = [self._maps[birth].apply(g) for birth in self._births]
            return [unit(torch.from_numpy(np.ascontiguousarray(m)).to(old_Bd)) for m in mapped]
        return [self._by_kernel(old_Bd, u_Cd, drift_Cd) for u_Cd, drift_Cd in self._banks]

    def _by_kernel(self, old_Bd: Tensor, u_Cd: Tensor, drift_Cd: Tensor) -> Tensor:
        """V_k(x) = normalise(g_O(x) - sum_c a_c (m_c - b_c)), a_c = kernel(u_c, z_O(x)) normalised to
        sum 1."""
        s = self._settings
        weights_BC = kernel_weights(old_Bd, u_Cd, s.kernel, s.kernel_width)
        return unit(old_Bd - kernel_mean(weights_BC, drift_Cd, s.kernel_floor))
