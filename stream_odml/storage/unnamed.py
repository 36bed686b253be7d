"""Temporary files without a name.

Protects: copies of what users store end with the process that made them, however it ends, and are erased with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def unnamed_file() -> Iterator[tuple[IO[bytes], Path]]:
    """Yield a new file, open for writing, and a path under which this process can open it as long as the block lasts.

    What was written is seen under the path once it is flushed."""
    with tempfile.TemporaryFile() as file:
        yield file, Path(f"/proc/self/fd/{file.fileno()}")
