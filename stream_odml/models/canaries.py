"""Canaries: a few images and the vectors that a model gave for them when its version was committed.

Protects: whoever loads the model, on whatever machine and with whatever libraries, reads images as those did whose
vectors are stored, or does not begin. Two spaces that differ by a preprocessing step look alike, and nothing else
would tell.
"""

# n canaries   D what the embedder gives (a trunk's features under a discriminant head)

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stream_odml.ingest.decode import Pixels, decode_image
from stream_odml.learn.embedder import Embedder, embed, embedder_from_bytes
from stream_odml.learn.packing import pack, unpack

MAX_PIXELS = 1 << 26
TOLERANCE = 0.02
"""Largest deviation of vectors that are the same but for rounding, of codecs and of arithmetic; see `deviation`."""
ROUNDED = 1e-3
"""Differences, in units of the vectors' lengths, that may be rounding: a thousand times a sound net's."""
Decode = Callable[[bytes, int], Pixels]
"""(file, side of the square) -> RGB pixels [side, side, 3]."""
Floats = NDArray[np.float32]


def as_the_stream_decodes(image: bytes, size: int) -> Pixels:
    """Decode as every image of a stream is decoded."""
    return decode_image(image, size, MAX_PIXELS)


@dataclass(frozen=True, eq=False)
class Canaries:
    """Images, as bytes of files, and their raw vectors [n, D]."""

    images: tuple[bytes, ...]
    vectors_nD: Floats

    def __post_init__(self) -> None:
        n, shape = len(self.images), self.vectors_nD.shape
        if n < 2 or len(shape) != 2 or shape[0] != n or not np.isfinite(self.vectors_nD).all():
            raise ValueError(
                f"canaries of {n} images and vectors {shape}: expected two or more, and a finite vector of each"
            )

    @staticmethod
    def of(embedder: Embedder, images: Sequence[bytes] | None = None) -> Canaries:
        """Return canaries of a model: of `images`, or of drawn ones."""
        images = draw_pictures(embedder.spec.image_size) if images is None else images
        return Canaries(tuple(images), vectors_of(embedder, images))

    def deviation(self, vectors_nD: Floats) -> float:
        """Return the root mean square distance of vectors from those kept, in units of how far those differ among
        themselves: 0 for the same, about 1.4 for what has nothing to do with them. Infinite for another length."""
        if vectors_nD.shape != self.vectors_nD.shape or not np.isfinite(vectors_nD).all():
            return float("inf")
        kept_nD = self.vectors_nD.astype(np.float64)
        spread = float(np.square(kept_nD - kept_nD.mean(axis=0)).sum())
        # A net that nobody has trained may give one vector for everything, which differs by rounding alone.
        unit = spread + ROUNDED**2 * float(np.square(kept_nD).sum())
        return float(np.sqrt(np.square(vectors_nD - kept_nD).sum() / (unit or 1.0)))

    def to_bytes(self) -> bytes:
        """Return bytes for `from_bytes`."""
        joined = np.frombuffer(b"".join(self.images), np.uint8)
        return pack(
            "canaries", {"images": joined, "vectors": self.vectors_nD}, lengths=[*map(len, self.images)]
        )

    @staticmethod
    def from_bytes(data: bytes) -> Canaries:
        """Read the bytes of `to_bytes`. Raises BadArtifact where they are damaged."""
        _, arrays, meta = unpack(data, ("canaries",))
        ends = np.cumsum([0, *meta["lengths"]])
        whole = arrays["images"].tobytes()
        images = tuple(whole[a:b] for a, b in pairwise(ends))
        return Canaries(images, np.asarray(arrays["vectors"], np.float32))


def canaries_of(student: bytes) -> bytes:
    """Return the canaries of a stored model, as bytes: by the model as whoever loads it will have it."""
    return Canaries.of(embedder_from_bytes(student)).to_bytes()


def vectors_of(
    embedder: Embedder,
    images: Sequence[bytes],
    decode: Decode = as_the_stream_decodes,
    device: str | torch.device = "cpu",
) -> Floats:
    """Return raw vectors [n, D] of images, as bytes of files."""
    size = embedder.spec.image_size
    return embed(embedder, np.stack([decode(image, size) for image in images]), device)


PICTURES = 8
_SHAPES = ((1.5, 2.2), (2.6, 1.7), (3.1, 2.9), (1.2, 1.9))
"""Width and height in sides of the model's input. A codec may halve the third while it decodes."""
_WAVES = 6
_FINEST = 0.6
"""Most waves of a stripe in one pixel of the model's input: some are finer than it can show."""


def draw_pictures(image_size: int) -> list[bytes]:
    """Return PICTURES encoded images, PNG and JPEG in turn, for a model whose input has this side.

    They hold nothing of anybody, so no erasure has to find them, and they are there before the first image of a stream.
    Each has many colours, edges and fine stripes, is no square, and is larger than the model's input: whoever swaps
    channels, resizes or crops in another way gets other pixels.
    """
    drawn = [_pixels(image_size, number) for number in range(PICTURES)]
    return [_encoded(pixels, "JPEG" if number % 2 else "PNG") for number, pixels in enumerate(drawn)]


def _pixels(image_size: int, number: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([0, number, 0xCA4A])
    width, height = (max(12, round(side * image_size)) for side in _SHAPES[number % len(_SHAPES)])
    y, x = np.mgrid[:height, :width] / min(width, height) * image_size
    colours = np.full((height, width, 3), rng.uniform(60, 190, 3))
    for _ in range(_WAVES):
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        frequency = _FINEST * 0.02 ** rng.uniform()
        wave = np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        colours += wave[..., None] * rng.uniform(-45, 45, 3)
    for _ in range(3):  # plates with an edge
        left, top = rng.uniform(0, 0.7, 2) * (width, height)
        right, bottom = (left, top) + rng.uniform(0.15, 0.5, 2) * (width, height)
        plate = np.s_[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
        colours[plate] = 0.4 * colours[plate] + 0.6 * rng.uniform(0, 255, 3)
    pixels: NDArray[np.uint8] = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
    return pixels


def _encoded(pixels: NDArray[np.uint8], format: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, quality=95)
    return out.getvalue()
