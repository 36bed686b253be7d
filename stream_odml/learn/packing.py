"""Arrays and a little JSON as safetensors bytes: the one file format of this package, never a pickle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

Array = NDArray[Any]
Floats = NDArray[np.floating[Any]]
_KEY = "stream_odml"


class BadArtifact(ValueError):
    """Bytes that are not the artifact they were taken for."""


def pack(kind: str, arrays: dict[str, Array], **meta: object) -> bytes:
    """Pack arrays and JSON-able values under a kind as safetensors bytes."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # One key: safetensors writes several in random order, and equal artifacts would have different hashes.
    header = json.dumps({"kind": kind, "meta": meta}, sort_keys=True)
    return safetensors.numpy.save(contiguous, metadata={_KEY: header})


def unpack(data: bytes, kinds: tuple[str, ...]) -> tuple[str, dict[str, Array], dict[str, Any]]:
    """Return (kind, arrays, meta) of `pack`. Raises BadArtifact for damaged bytes or a kind not in `kinds`."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        kind, meta = str(header["kind"]), dict(header["meta"])
        arrays = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadArtifact(
            f"{len(data)} bytes are no readable artifact ({type(error).__name__}: {error}); "
            f"expected safetensors of kind {' or '.join(kinds)}; fetch it again, or use an older version"
        ) from error
    if kind not in kinds:
        raise BadArtifact(f"an artifact of kind {kind!r}, expected {' or '.join(kinds)}")
    return kind, arrays, meta
