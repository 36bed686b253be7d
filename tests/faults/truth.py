"""What producers were told: the memory of the oracle, apart from everything that the stream writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Confirmed:
    """A shard that landed: its items with their classes, and when its producer knew (monotonic seconds)."""

    name: str
    items: Mapping[str, str]
    at: float


@dataclass
class Truth:
    """Safe to use from several threads."""

    shards: dict[str, Confirmed] = field(default_factory=dict)
    tried: dict[str, str] = field(default_factory=dict)
    """Class by item of all that was ever offered: what is neither here nor above is a phantom."""
    forgotten: set[str] = field(default_factory=set)
    """Items whose forgetting was confirmed."""
    forgetting: set[str] = field(default_factory=set)
    """Items that somebody asked to forget: they may be there or not."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, items: Mapping[str, str]) -> None:
        """About to be landed."""
        with self._lock:
            self.tried |= items

    def confirm(self, name: str, items: Mapping[str, str]) -> Confirmed:
        """The inbox has it, or the service said 2xx."""
        confirmed = Confirmed(name, dict(items), time.monotonic())
        with self._lock:
            self.shards[name] = confirmed
        return confirmed

    def ask_to_forget(self, item: str) -> None:
        """About to be forgotten."""
        with self._lock:
            self.forgetting.add(item)

    def confirm_forgotten(self, item: str) -> None:
        """The service said 2xx."""
        with self._lock:
            self.forgotten.add(item)

    def seen(self) -> Truth:
        """A copy that does not change any more."""
        with self._lock:
            return Truth(dict(self.shards), dict(self.tried), set(self.forgotten), set(self.forgetting))

    def landed(self) -> dict[str, str]:
        """Class by item of all that was confirmed."""
        with self._lock:
            return {item: name for shard in self.shards.values() for item, name in shard.items.items()}
