"""Drawn images, as bytes of files: what a canary shows when nobody gave images.

They hold nothing of anybody, so no erasure has to find them, and they are there before the first image of a stream is.
Each has many colours, edges and fine stripes, is no square, and is larger than the model's input: whoever swaps
channels, resizes or crops in another way gets other pixels.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PICTURES = 8
_SHAPES = ((1.5, 2.2), (2.6, 1.7), (3.1, 2.9), (1.2, 1.9))
"""Width and height in sides of the model's input. A codec may halve the third while it decodes."""
_WAVES = 6
_FINEST = 0.6
"""Most waves of a stripe in one pixel of the model's input: some are finer than it can show."""


def draw_pictures(image_size: int) -> list[bytes]:
    """Return PICTURES encoded images, PNG and JPEG in turn, for a model whose input has this side."""
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
