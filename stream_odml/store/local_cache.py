"""A cache of remote bytes in an unnamed local file, which ends with the process.

Protects: artifacts that every new version needs, and that grow in number with the versions, neither fill memory nor
are fetched again.
"""

import contextlib
import os
import tempfile
import threading
import weakref
from collections.abc import Callable


class LocalCache:
    """Caches bytes by name; safe for many threads. Where nothing can be written, everything is fetched again."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()

    def get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """Return what `fetch` returned for `name` the first time."""
        place = self._places.get(name)
        if place is not None:
            return os.pread(self._file, place[1], place[0])
        data = fetch()
        with self._lock, contextlib.suppress(OSError):
            if os.pwrite(self._file, data, self._end) == len(data):
                self._places[name] = self._end, len(data)
                self._end += len(data)
        return data
