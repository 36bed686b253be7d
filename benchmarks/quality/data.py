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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.reasons import BadImage

Ints = NDArray[np.int64]
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_null)
"""Types of encoded images; a column of nothing but missing ones is told by its first row."""


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

    `image` is encoded bytes, or a struct with such `bytes`, as Hugging Face writes it. Raises ValueError for a row that
    cannot be used, OSError for a file that cannot be read.
    """
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    if missing := {"image", "class_name"} - set(columns):
        raise ValueError(
            f"{path} has no column {' and no column '.join(sorted(missing))}; it has {', '.join(columns)}: "
            "rename those that hold encoded images and the names of their classes"
        )
    names = pq.read_table(path, columns=["class_name"])["class_name"]
    if not len(names):
        raise ValueError(f"{path} has no rows")
    if names.null_count:
        raise ValueError(
            f"{path}: {names.null_count} of {len(names)} rows have no class_name; each needs one"
        )
    class_names, labels = np.unique(np.asarray(names.to_pylist()), return_inverse=True)
    cached = work / f"pixels-{fingerprint}-{size}.npy"
    if not cached.exists():
        images = pq.read_table(path, columns=["image"])["image"]
        if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
            images = pc.struct_field(images, "bytes")
        if not any(holds(images.type) for holds in _BYTES):
            raise ValueError(
                f"{path}: column image is of type {images.type}; expected the bytes of image files (binary), or a "
                "struct with a field bytes of these"
            )
        _decode_into(cached, images.to_pylist(), size, path)
    try:
        pixels = np.load(cached, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{cached} is damaged ({error}); delete {cached}, and it is made again") from error
    return ImageSet(
        path.stem, fingerprint, pixels, labels.astype(np.int64), tuple(str(name) for name in class_names)
    )


def _decode_into(target: Path, images: Sequence[bytes | None], size: int, source: Path) -> None:
    """Writes aside and renames: a run that is killed here leaves no half-decoded cache behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(f".{os.getpid()}.part")
    pixels = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=(len(images), size, size, 3))

    def decode(i: int) -> None:
        data = images[i]
        try:
            pixels[i] = decode_image(b"" if data is None else data, size, DEFAULT_MAX_PIXELS)
        except BadImage as error:
            raise ValueError(f"{source}, row {i}: {error}") from error

    try:
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(decode, range(len(images))))
        pixels.flush()
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
