"""What differs most likely where a model does not give its canaries' vectors: other ways to read the same images are
tried, one change at a time and then two, and the one that fits is named."""

# n canaries   D what the embedder gives

from __future__ import annotations

import copy
import io
import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from stream_odml.ingest.decode import Pixels
from stream_odml.learn.backbone import IMAGENET, SYMMETRIC, frozen_norms
from stream_odml.learn.embedder import Embedder, as_images
from stream_odml.models.canaries import TOLERANCE, Canaries, Decode, Floats, as_the_stream_decodes

LIMIT_S = 10.0
"""Seconds of processor time after which no further way is tried."""
_SIDES = (0.5, 2 / 3, 0.75, 0.875, 8 / 7, 1.25, 4 / 3, 1.5, 2.0)
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
_PLAIN: Statistics = ((0.0,) * 3, (1.0,) * 3)
_BYTES: Statistics = ((0.0,) * 3, (1 / 255,) * 3)
_IMAGENET_BYTES: Statistics = (IMAGENET[0], tuple(value / 255 for value in IMAGENET[1]))


@dataclass(frozen=True)
class Reading:
    """How images become vectors; None: as this process does it."""

    decode: Decode | None = None
    side: float = 1.0
    swapped: bool = False
    statistics: Statistics | None = None
    training: bool = False


@dataclass(frozen=True, eq=False)
class Change:
    """One difference: what it is about, how it is said, and how it reads images."""

    kind: str
    words: str
    reading: Mapping[str, Any]
    """Fields of `Reading` that it sets."""


@dataclass(frozen=True)
class Diagnosis:
    """The kinds that differ, in words; `fits`: whether they explain all of it."""

    kinds: tuple[str, ...]
    words: str
    deviation: float
    fits: bool


CHECKPOINT = "checkpoint"
_NEARER = 0.9
_TOGETHER = ("channels", "resize", "normalisation")
"""Kinds that are mistaken two at a time, as by another library for images."""


def diagnose(canaries: Canaries, embedder: Embedder, decode: Decode = as_the_stream_decodes) -> Diagnosis:
    """Return what differs most likely between the vectors kept and those of `embedder` for images `decode` reads."""
    trier, single = _Trier(canaries, embedder, decode), _changes(embedder)
    now, found = trier.deviation(()), trier.best([(change,) for change in single])
    if found[0] > TOLERANCE:
        # What is mistaken twice is nearer with one of the two put right.
        nearer = [c for c in single if c.kind in _TOGETHER and trier.deviation((c,)) < _NEARER * now]
        pairs = [
            (a, b) for a, b in itertools.product(nearer, single) if b.kind in _TOGETHER and a.kind != b.kind
        ]
        found = trier.best([found[1], *pairs])
    best, changes = found
    if best <= TOLERANCE:
        return Diagnosis(tuple(c.kind for c in changes), " and ".join(c.words for c in changes), best, True)
    words = "the weights are others: another checkpoint"
    if best < now / 3:
        words += f", or its training went on (nearest otherwise: {' and '.join(c.words for c in changes)})"
    return Diagnosis((CHECKPOINT,), words, now, False)


def _changes(embedder: Embedder) -> list[Change]:
    single = [
        Change("channels", "the colour channels are swapped (BGR for RGB)", {"swapped": True}),
        *(Change("resize", words, {"decode": decode}) for words, decode in _RESIZES.items()),
        *(Change("side", f"the input has {_side(embedder, s)} pixels a side", {"side": s}) for s in _SIDES),
        *(Change("normalisation", words, {"statistics": s}) for words, s in _NORMALISATIONS.items()),
    ]
    if _depends_on_mode(embedder):
        words = "batch norm and dropout are in training mode (eval() is missing)"
        single.append(Change("mode", words, {"training": True}))
    return single


def _depends_on_mode(embedder: Embedder) -> bool:
    dropouts = (nn.Dropout, nn.Dropout2d)
    return bool(frozen_norms(embedder)) or any(isinstance(m, dropouts) and m.p for m in embedder.modules())


def _side(embedder: Embedder, factor: float) -> int:
    return max(8, round(embedder.spec.image_size * factor))


class _Trier:
    """Embeds canaries in other ways than this process does; pixels are decoded once a way."""

    def __init__(self, canaries: Canaries, embedder: Embedder, decode: Decode) -> None:
        self._canaries, self._decode = canaries, decode
        self._embedder = copy.deepcopy(embedder).cpu().eval()
        self._own = self._embedder.mean.clone(), self._embedder.std.clone()
        self._pixels: dict[tuple[Decode, int], Pixels] = {}
        self._tried: dict[tuple[Change, ...], float] = {}
        self._ends = time.process_time() + LIMIT_S

    def best(self, ways: Iterable[tuple[Change, ...]]) -> tuple[float, tuple[Change, ...]]:
        """Return the least deviation and its changes; of ways that fit alike the first."""
        return min(((self.deviation(way), way) for way in ways), key=lambda found: round(found[0], 4))

    def deviation(self, changes: tuple[Change, ...]) -> float:
        """Return the deviation under these changes; infinite where they give no vectors, or the time is over."""
        if changes not in self._tried:
            is_late = time.process_time() > self._ends
            self._tried[changes] = float("inf") if is_late else self._measured(changes)
        return self._tried[changes]

    def _measured(self, changes: tuple[Change, ...]) -> float:
        reading = Reading(**{name: value for change in changes for name, value in change.reading.items()})
        try:
            return self._canaries.deviation(self._vectors(reading))
        except (RuntimeError, ValueError):  # an input that this net does not take
            return float("inf")

    def _vectors(self, reading: Reading) -> Floats:
        decode, side = reading.decode or self._decode, _side(self._embedder, reading.side)
        if (decode, side) not in self._pixels:
            self._pixels[decode, side] = np.stack([decode(image, side) for image in self._canaries.images])
        pixels = self._pixels[decode, side]
        if reading.swapped:
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        model = self._embedder
        asked = reading.statistics
        model.mean, model.std = (
            self._own if asked is None else (torch.tensor(v).view(1, -1, 1, 1) for v in asked)
        )
        if reading.training:
            model = copy.deepcopy(model)
            model.norms_frozen = False
            model.train()
        with torch.inference_mode(not reading.training), torch.no_grad():
            return np.asarray(model(as_images(pixels)).numpy(), np.float32)


def _resized(image: bytes, size: int, filter: Image.Resampling, cropped: bool, antialiased: bool) -> Pixels:
    with Image.open(io.BytesIO(image)) as opened:
        rgb = opened.convert("RGB")
    width, height = rgb.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if cropped else (0.0, 0.0, float(width), float(height))
    if antialiased:
        return np.array(rgb.resize((size, size), filter, box), np.uint8)
    # What OpenCV and torch's interpolate do: the four nearest pixels, however many lie between.
    scale = (box[2] - box[0]) / size, (box[3] - box[1]) / size
    move = (scale[0], 0.0, box[0], 0.0, scale[1], box[1])
    return np.array(rgb.transform((size, size), Image.Transform.AFFINE, move, filter), np.uint8)


def _two_step(image: bytes, size: int) -> Pixels:
    with Image.open(io.BytesIO(image)) as opened:
        rgb = opened.convert("RGB")
    short = round(size * 256 / 224)
    scale = short / min(rgb.size)
    rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.BILINEAR)
    left, top = round((rgb.width - size) / 2), round((rgb.height - size) / 2)
    return np.array(rgb.crop((left, top, left + size, top + size)), np.uint8)


def _filtered(filter: Image.Resampling, cropped: bool = True, antialiased: bool = True) -> Decode:
    return lambda image, size: _resized(image, size, filter, cropped, antialiased)


_RESIZES: dict[str, Decode] = {
    "images are resized bilinearly and cropped in the middle, as this release does": as_the_stream_decodes,
    "images are resized by nearest neighbour": _filtered(Image.Resampling.NEAREST),
    "images are resized bicubically": _filtered(Image.Resampling.BICUBIC),
    "images are resized by Lanczos": _filtered(Image.Resampling.LANCZOS),
    "images are resized by the mean of a box": _filtered(Image.Resampling.BOX),
    "images are resized bilinearly without antialiasing, as OpenCV does": _filtered(
        Image.Resampling.BILINEAR, antialiased=False
    ),
    "images are squeezed into a square, not cropped": _filtered(Image.Resampling.BILINEAR, cropped=False),
    "images are squeezed into a square bicubically, not cropped": _filtered(
        Image.Resampling.BICUBIC, cropped=False
    ),
    "images are resized to 256/224 of the side and then cropped": _two_step,
}
_NORMALISATIONS: dict[str, Statistics] = {
    "pixels are not normalised (0 to 1)": _PLAIN,
    "pixels are not normalised (0 to 255)": _BYTES,
    "pixels are normalised by ImageNet's mean and deviation": IMAGENET,
    "pixels are normalised by ImageNet's mean and deviation, of 0 to 255": _IMAGENET_BYTES,
    "pixels are normalised to -1 to 1": SYMMETRIC,
}
