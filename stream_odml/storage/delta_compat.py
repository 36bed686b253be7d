"""What leans on the inside of the Delta library: one attribute. A test of the same name tells when it moves."""

from __future__ import annotations

from typing import Any

from deltalake.fs import DeltaStorageHandler


def open_output(handler: DeltaStorageHandler, path: str) -> Any:
    """Open an object to write: its `write` takes bytes, and `close` shows it.

    The library's own wrapper of this stream refuses the buffers that pyarrow hands to it. Leans on
    `DeltaStorageHandler._handler`; without it no file of a root in an object store can be written.
    """
    return handler._handler.open_output_stream(path)
