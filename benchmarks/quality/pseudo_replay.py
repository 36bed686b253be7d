"""Rivals that carry a stored gallery over by pseudo-replay: images of the task are pushed until the old model takes
them for images of an old class; what both models make of these tells where the items of that class went.
"""

# n images of the task   C old classes   d embedding

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.quality.data import Ints
from benchmarks.quality.state import Floats
from stream_odml.learn.drift import AffineMap
from stream_odml.learn.embedder import Embedder, as_images
from stream_odml.learn.ranges import Count, Positive, Range, check_fields

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PseudoReplay:
    """How the items of an old class follow, by pseudo-samples of it.

    `adc`: all move by the mean drift of the pseudo-samples (Adversarial Drift Compensation, Goswami et al., CVPR 2024,
    which moves class means). `apr`: the class mean moves so, and what an item differs from it by is multiplied by W, as
    the class's covariance is on both sides (Adversarial Pseudo-Replay, Honda, WACV 2026): W x + t is fitted to y by
    mean distance, from the identity, by Adam at 1e-4, in batches of 16, 64 epochs. Its training is not theirs.
    """

    kind: Literal["adc", "apr"]
    samples: Annotated[int, Range(at_least=1)] = 100
    """Images of the task that are pushed: those nearest to the class mean under the old model. ADC has 100, APR 1,000,
    both of tasks of 5,000."""
    step: Positive = 2.5
    """Length of a push in standardised pixels, root mean square over all n: 25 / √100 in ADC, 25 / √1000 in APR."""
    pushes: Annotated[int, Range(at_least=1)] = 3
    """3 in both for photographs; APR takes 9 for images of 32 pixels."""
    epochs: Count = 64
    rate: Positive = 1e-4

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(
        self,
        models: tuple[Embedder, Embedder],
        pixels: Pixels,
        means: Mapping[int, Floats],
        device: str,
        seed: int,
    ) -> dict[int, AffineMap]:
        """Fit the map of each old class, from the `pairs` of its pseudo-samples."""
        return {
            label: self._map(x_nd, y_nd, torch.from_numpy(means[label]), seed)
            for label, x_nd, y_nd in self.pairs(models, pixels, means, device)
        }

    def pairs(
        self, models: tuple[Embedder, Embedder], pixels: Pixels, means: Mapping[int, Floats], device: str
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each old class with what the old model and the new one make of its pseudo-samples. `pixels`
        [n, H, W, 3]: the task's images; `means`: of each class, under the old model, raw."""
        old, new = (model.eval().to(device) for model in models)
        images = as_images(pixels, device)
        means_Cd = torch.from_numpy(np.stack(list(means.values()))).to(device)
        limits = float(images.min()), float(images.max())
        g_nd = _embedded(old, images)
        for at, label in enumerate(means):
            nearest = torch.cdist(g_nd, means_Cd[at : at + 1])[:, 0].argsort(stable=True)[: self.samples]
            pushed = push(old, images[nearest], means_Cd[at], self.step, self.pushes, limits)
            x_nd = _embedded(old, pushed)
            taken = torch.cdist(x_nd, means_Cd).argmin(1) == at
            if not taken.any():  # as ADC does: the nearest images, as they are
                pushed, x_nd, taken = images[nearest], g_nd[nearest], torch.ones_like(taken)
            yield label, x_nd[taken].cpu(), _embedded(new, pushed[taken]).cpu()
        for model in models:
            model.cpu()

    def _map(self, x_nd: Tensor, y_nd: Tensor, mean_d: Tensor, seed: int) -> AffineMap:
        mean, shift = mean_d.double().numpy(), (y_nd - x_nd).double().mean(0).numpy()
        A_dd = np.eye(len(mean)) if self.kind == "adc" else self._transfer(x_nd, y_nd, seed)
        return AffineMap(A_dd, mean + shift - A_dd @ mean)

    def _transfer(self, x_nd: Tensor, y_nd: Tensor, seed: int) -> NDArray[np.float64]:
        """Return W of APR."""
        d = x_nd.shape[1]
        random, net = torch.Generator().manual_seed(seed), nn.Linear(d, d)
        nn.init.eye_(net.weight)
        nn.init.zeros_(net.bias)
        optimiser = torch.optim.Adam(net.parameters(), self.rate)
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(x_nd), generator=random), 16):
                optimiser.zero_grad()
                # A distance has no gradient at 0.
                apart = (net(x_nd[rows]) - y_nd[rows]).square().sum(1).clamp_min(1e-12).sqrt()
                apart.mean().backward()
                optimiser.step()
        W_dd: NDArray[np.float64] = net.weight.detach().double().numpy()
        return W_dd


def push(
    old: Embedder,
    images_n3HW: Tensor,
    target_d: Tensor,
    step: float,
    pushes: int,
    limits: tuple[float, float],
) -> Tensor:
    """Return the images after steps down the squared distance of their embeddings to the target, all together of length
    step √n in standardised pixels (APR: every 64 together), kept within `limits`."""
    length = step * math.sqrt(len(images_n3HW))
    for _ in range(pushes):
        slopes = torch.cat([_slope(old, part, target_d) for part in torch.split(images_n3HW, 64)]) * old.std
        size = torch.linalg.vector_norm(slopes).clamp_min(1e-30)
        images_n3HW = (images_n3HW - old.std * slopes * (length / size)).clamp(*limits)
    return images_n3HW


def _slope(old: Embedder, images: Tensor, target_d: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad((old(images) - target_d).square().sum(), images)
    return slope


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Maps of rows of known classes: what carries the measured gallery of one stage, and no other vector."""

    maps: Mapping[int, AffineMap]
    labels_n: Ints
    kind: str = "by class"

    def apply(self, g_nd: Floats) -> Floats:
        """Map each row by the map of its class. ValueError for other rows than it was made for."""
        if len(g_nd) != len(self.labels_n):
            raise ValueError(f"{len(g_nd)} rows, expected the {len(self.labels_n)} whose classes are known")
        moved_nd = np.empty_like(g_nd)
        for label in np.unique(self.labels_n):
            own = self.labels_n == label
            moved_nd[own] = self.maps[int(label)].apply(g_nd[own])
        return moved_nd

    def to_bytes(self) -> bytes:
        """Raise TypeError: it only carries a measured gallery, and no version keeps it."""
        raise TypeError("a map of rows by their classes is kept by no version")


def _embedded(model: Embedder, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(images, 256)])


PSEUDO: Mapping[str, PseudoReplay] = MappingProxyType(
    {"adc_l2": PseudoReplay("adc"), "apr_l2": PseudoReplay("apr", samples=1000, step=25 / math.sqrt(1000))}
)
"""By the name of the table, on the models of `l2`."""
