"""A release of the Delta library that moves what `delta_compat.py` leans on is named here."""

from __future__ import annotations

from pathlib import Path

import deltalake
from deltalake.fs import DeltaStorageHandler

from stream_odml.storage.delta_compat import open_output


def test_the_stream_below_the_handler_takes_bytes(tmp_path: Path) -> None:
    handler = DeltaStorageHandler(str(tmp_path))
    assert hasattr(handler, "_handler"), (
        f"deltalake {deltalake.__version__} has no DeltaStorageHandler._handler; see delta_compat.py"
    )
    stream = open_output(handler, "folder/name")
    stream.write(b"one ")
    stream.write(b"two")
    stream.close()
    assert (tmp_path / "folder" / "name").read_bytes() == b"one two"
