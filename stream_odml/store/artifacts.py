"""Immutable files of a model version, named by their content and checked by hash whenever they are read.

Protects: what is read is what was committed; two attempts, or a zombie, can never overwrite each other's file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from stream_odml.storage.crashpoints import crash_point
from stream_odml.storage.files import Files
from stream_odml.store.errors import ArtifactCorrupt
from stream_odml.store.row_values import mapping, parsed, text, whole

STUDENT = "student.safetensors"
BANK = "bank.safetensors"
HEAD = "head.safetensors"
"""Discriminant head of a version whose student is the trunk alone."""
SUMS = "sums.safetensors"
"""Class sums of all that a version has learnt, from which its head is solved."""
CANARIES = "canaries.safetensors"
"""A few images and the vectors that a version's student gave for them. Versions of one student share it."""
FORWARD = "forward.safetensors"
"""Drift map from the parent's space into this version's. None where both have one trunk: they name one student."""
BACKWARD = "backward.safetensors"
"""Drift map from this version's space into its parent's."""


@dataclass(frozen=True)
class ArtifactRef:
    """Where an artifact lies (`path` relative to the stream root), its sha256 (hex) and its length in bytes."""

    path: str
    sha256: str
    bytes: int


def write_artifact(files: Files, version_id: str, name: str, data: bytes) -> ArtifactRef:
    """Write `data` under `artifacts/<version_id>/`; any process may, for only a commit gives it a meaning."""
    if not name or "/" in name:
        raise ValueError(f"artifact name {name!r} must be a plain file name, like {STUDENT!r}")
    digest = hashlib.sha256(data).hexdigest()
    path = f"artifacts/{version_id}/{digest[:16]}-{name}"
    if not files.exists(path):
        files.write(path, data)
    crash_point("artifact.after")
    return ArtifactRef(path, digest, len(data))


def read_artifact(files: Files, ref: ArtifactRef) -> bytes:
    """Return the bytes of `ref`. Raises ArtifactCorrupt when they are missing or not those that were committed."""
    try:
        data = files.read(ref.path)
    except FileNotFoundError:
        raise ArtifactCorrupt(f"{ref.path} is gone from the stream root; restore it from a backup") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != ref.sha256:
        raise ArtifactCorrupt(
            f"{ref.path} has sha256 {digest[:16]}… ({len(data)} bytes), committed was {ref.sha256[:16]}… "
            f"({ref.bytes} bytes); restore it from a backup or roll back to another version"
        )
    return data


def refs_to_json(refs: Mapping[str, ArtifactRef]) -> str:
    """Return text as kept in the `versions` table: name -> {path, sha256, bytes}."""
    return json.dumps({name: asdict(ref) for name, ref in sorted(refs.items())})


def refs_from_json(column: str | None) -> dict[str, ArtifactRef]:
    """Return the inverse of `refs_to_json`. Raises ValueError, KeyError for what it did not write."""
    stated = {name: mapping(ref, name) for name, ref in parsed(column).items()}
    return {
        name: ArtifactRef(
            text(ref["path"], "path"), text(ref["sha256"], "sha256"), whole(ref["bytes"], "bytes")
        )
        for name, ref in stated.items()
    }
