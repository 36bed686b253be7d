"""A decoder that misbehaves on one image, in every process that a test starts: as a bug in a codec does."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

_SITE = """
import hashlib, os, time
try:
    from stream_odml.ingest import decode
except ImportError:  # one of Ray's own processes
    pass
else:
    whole = decode.decode_image

    def decode_image(data, *arguments):
        if hashlib.sha256(data).hexdigest() == {sha256!r}:
            {misbehave}
        return whole(data, *arguments)

    decode.decode_image = decode_image
"""


def poison(monkeypatch: pytest.MonkeyPatch, folder: Path, image: bytes, misbehave: str) -> None:
    """From now on, processes that this one starts run `misbehave`, a line of Python, when they decode `image`."""
    site = folder / "poisoned-site"
    site.mkdir()
    text = _SITE.format(sha256=hashlib.sha256(image).hexdigest(), misbehave=misbehave)
    (site / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
