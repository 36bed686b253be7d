"""Fixtures for all rooms: the folder of real images, and loud words where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that STREAM_ODML_DATA names; tests that need real images are skipped without it, and say so."""
    folder = Path(os.environ.get("STREAM_ODML_DATA", ""))
    if not os.environ.get("STREAM_ODML_DATA") or not (folder / "omniglot.parquet").exists():
        pytest.skip(
            "NOT CHECKED: set STREAM_ODML_DATA to the folder with omniglot.parquet and the other real images"
        )
    return folder
