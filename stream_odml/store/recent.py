"""The last few values that were asked for, by name."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Safe for many threads; ``most`` values are held."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], T]) -> T:
        """Return the value of ``name``, made if it is not held; two threads may both make it."""
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
                return self._held[name]
        value = make()
        with self._lock:
            self._held[name] = value
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return value
