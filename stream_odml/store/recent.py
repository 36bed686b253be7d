"""The last few values that were asked for, by name."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Recent(Generic[K, T]):
    """Safe for many threads. The sizes of what is held, by default one each, add up to `most` or less; the last value
    is held whatever its size."""

    def __init__(self, most: int, size: Callable[[T], int] = lambda value: 1) -> None:
        self._most, self._size = most, size
        self._held: OrderedDict[K, T] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: K) -> T | None:
        """Return the value of `name` if it is held."""
        with self._lock:
            if name not in self._held:
                return None
            self._held.move_to_end(name)
            return self._held[name]

    def keep(self, name: K, value: T) -> T:
        """Hold a value, and return it."""
        with self._lock:
            self._held[name] = value
            self._held.move_to_end(name)
            while len(self._held) > 1 and sum(map(self._size, self._held.values())) > self._most:
                self._held.popitem(last=False)
        return value

    def get(self, name: K, make: Callable[[], T]) -> T:
        """Return the value of `name`, made if it is not held; two threads may both make it."""
        held = self.find(name)
        return self.keep(name, make()) if held is None else held

    def __contains__(self, name: K) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[K]:
        """Yield the names, the most recent one first."""
        with self._lock:
            return reversed(list(self._held))
