"""Images of a Parquet file, decoded once into a memory-mapped array beside the results."""

# N images   S side in pixels

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.stream.decode import decode_image

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pixels uint8 [N, S, S, 3] and labels int64 [N] into `class_names`, which are sorted."""

    name: str
    fingerprint: str
    pixels: NDArray[np.uint8]
    labels: Ints
    class_names: tuple[str, ...]


def load_images(path: Path, size: int, work: Path) -> ImageSet:
    """Reads the columns `image` and `class_name`; decodes at `size` unless `work` holds them already.

    Raises BadImage for an image that cannot be decoded, OSError for a file that cannot be read.
    """
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    names = pq.read_table(path, columns=["class_name"])["class_name"].to_pylist()
    class_names, labels = np.unique(np.asarray(names), return_inverse=True)
    cached = work / f"pixels-{fingerprint}-{size}.npy"
    if not cached.exists():
        images = pq.read_table(path, columns=["image"])["image"].to_pylist()
        _decode_into(cached, images, size)
    pixels = np.load(cached, mmap_mode="r")
    return ImageSet(
        path.stem, fingerprint, pixels, labels.astype(np.int64), tuple(str(name) for name in class_names)
    )


def _decode_into(target: Path, images: Sequence[bytes], size: int) -> None:
    """Writes aside and renames: a run that is killed here leaves no half-decoded cache behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(f".{os.getpid()}.part")
    pixels = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=(len(images), size, size, 3))
    with ThreadPoolExecutor(max_workers=2) as pool:
        for i, decoded in enumerate(pool.map(lambda data: decode_image(data, size), images)):
            pixels[i] = decoded
    pixels.flush()
    os.replace(aside, target)
