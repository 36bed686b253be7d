"""Virtual features: estimates of the embeddings that older, deleted models would give to a new image."""

# B global batch   C classes of one origin version   d embedding

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.geometry import kernel_mean, kernel_weights, unit
from stream_odml.learn.settings import StageSettings


def virtual_versions(bank: ClassBank) -> list[str]:
    """Return the versions that need virtual features: the bank's origin versions without the parent, which is here."""
    return [origin for origin in bank.origins_in_order() if origin != bank.version]


class VirtualFeatures:
    """V_k of every older version k, from the old model's g, by the bank's kernel or by backward maps."""

    def __init__(
        self,
        bank: ClassBank,
        settings: StageSettings,
        backward_maps: Mapping[str, DriftMap],
        device: torch.device,
    ) -> None:
        """Take from the bank what the estimates need. `backward_maps`: origin version -> composed map from the parent's
        space to it, for virtual='affine'."""
        self._settings = settings
        # Under a discriminant head there is no bank: the maps say which older trunks there are.
        older = virtual_versions(bank) if len(bank) else list(backward_maps)
        self._versions = older if settings.weight_virtual > 0 else []
        self._maps = backward_maps
        if settings.virtual == "affine":
            missing = [version for version in self._versions if version not in backward_maps]
            if missing:
                raise ValueError(
                    f"virtual: affine needs a backward map to {', '.join(missing)}; "
                    "pass the composed maps, or set virtual: kernel"
                )
        u_Cd, drift_Cd = (
            torch.from_numpy(of).to(device) for of in (bank.directions, bank.means - bank.origin_means)
        )
        rows = [bank.rows_of_origin(version) for version in self._versions]
        self._banks = [(u_Cd[mine], drift_Cd[mine]) for mine in rows]

    def __len__(self) -> int:
        return len(self._versions)

    @torch.no_grad()
    def __call__(self, old_Bd: Tensor) -> list[Tensor]:
        """Return V_k [B, d] of each older version for raw g_O [B, d]: unit rows, no gradient."""
        if self._settings.virtual == "affine":
            g = np.ascontiguousarray(old_Bd.cpu().numpy())
            mapped = [self._maps[version].apply(g) for version in self._versions]
            return [unit(torch.from_numpy(np.ascontiguousarray(m)).to(old_Bd)) for m in mapped]
        return [self._by_kernel(old_Bd, u_Cd, drift_Cd) for u_Cd, drift_Cd in self._banks]

    def _by_kernel(self, old_Bd: Tensor, u_Cd: Tensor, drift_Cd: Tensor) -> Tensor:
        """Return unit(g_O(x) - Σ_c a_c (m_c - b_c)), a_c = kernel(u_c, z_O(x)) normalised to sum 1."""
        s = self._settings
        weights_BC = kernel_weights(old_Bd, u_Cd, s.kernel, s.kernel_width)
        return unit(old_Bd - kernel_mean(weights_BC, drift_Cd, s.kernel_floor))
