"""What a notebook may search for: a file, its bytes, a picture of Pillow's or numpy's, or a vector."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Subject = bytes | NDArray[np.float32]


def subject_of(query: Any) -> Subject:
    """Return the bytes of an image file, or a vector float32 [d]. Raises ValueError or FileNotFoundError."""
    if isinstance(query, bytes):
        return query
    if isinstance(query, str | os.PathLike):
        if not (path := Path(query)).is_file():
            raise FileNotFoundError(f"there is no image {str(path)!r}; give the path of a file")
        return path.read_bytes()
    if isinstance(query, Image.Image):
        return _png(query)
    array = np.asarray(query)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return _png(Image.fromarray(array))
    if array.ndim == 1 and len(array) and np.issubdtype(array.dtype, np.number):
        return array.astype(np.float32)
    raise ValueError(
        f"cannot search for {type(query).__name__} ({array.dtype} {list(array.shape)}); give the path or the bytes "
        "of an image, a Pillow image, pixels uint8 [height, width, 3], or a vector [d]"
    )


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
