"""stream_odml: streaming continual metric learning, served while it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from stream_odml.notebook.stream import Stream

__version__ = "0.2.0"
__all__ = ["open"]


def open(
    place: str | Path, token: str | None = None, storage_options: dict[str, str] | None = None
) -> Stream:
    """Open a stream root (a folder or an object-store prefix, whether or not its stream runs), or a running service by
    its address (`http://`): search, items, versions, add. See `docs/howto/python.md`."""
    # Here: whoever imports the package alone loads nothing.
    from stream_odml.notebook.stream import open_stream

    return open_stream(place, token, storage_options)
