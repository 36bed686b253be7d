"""Bytes read once from afar and then again and again, kept in a file that has no name and ends with the process.

Protects: what is needed for every new version, and grows with their number, neither fills memory nor is fetched again.
"""

import contextlib
import os
import tempfile
import threading
import weakref
from collections.abc import Callable


class Spool:
    """Safe for many threads. Where nothing can be written aside, everything is fetched anew."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()

    def get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """What ``fetch`` gave for ``name`` the first time."""
        place = self._places.get(name)
        if place is not None:
            return os.pread(self._file, place[1], place[0])
        data = fetch()
        with self._lock, contextlib.suppress(OSError):
            if os.pwrite(self._file, data, self._end) == len(data):
                self._places[name] = self._end, len(data)
                self._end += len(data)
        return data
