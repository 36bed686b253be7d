"""One data file of a Lance dataset, opened by its address: its library takes no file that is open already.

Protects: whoever reads shards, as only the process that decodes tables (`table_reader.py`) opens one: it may end that
process, or decode to more than its size allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stream_odml.storage.reading import is_remote

LANCE = "lance"
"""The format of such a file."""
BATCH_ROWS = 64


class LanceFile:
    """The file at `uri`. Raises ImportError where the library is not there."""

    def __init__(self, uri: str, options: Mapping[str, str], size_bytes: int) -> None:
        from lance.file import LanceFileReader

        self._reader = LanceFileReader
        self._uri, self._options, self.size_bytes = uri, dict(options), size_bytes
        self.is_unreachable = False

    def batches(self) -> Iterator[Any]:
        """Yield record batches. What fails in an object store may be the network's fault: it is not the file's."""
        try:
            yield from (
                self._reader(self._uri, self._options or None).read_all(batch_size=BATCH_ROWS).to_batches()
            )
        except (OSError, ValueError, RuntimeError):
            self.is_unreachable = is_remote(self._uri)
            raise
