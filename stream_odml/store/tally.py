"""Sums over all shards of a ledger, kept as rows are applied: reading them costs the same however many there are.

Protects: each is a function of the ledger's rows alone; a tally that is being counted is a copy that nobody else sees.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Shards that reached a state, images by what became of them, classes. To be read only."""

    indexed: int = 0
    assigned: int = 0
    set_aside: int = 0
    rows: int = 0
    held_out: int = 0
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Quarantined rows by reason."""
    classes: Set[str] = frozenset()
    """Every class that was ever indexed."""
    closed_classes: Set[str] = frozenset()
    """Those of shards that a closed task has."""

    def copy(self) -> "Tally":
        """Return one to go on counting with; the sets are shared until a class is added."""
        return Tally(**{**self.__dict__, "reasons": Counter(self.reasons)})

    def count_indexed(self, counts: Mapping[str, Any]) -> None:
        """Count a shard that was indexed with these counts."""
        self.indexed += 1
        self.rows += int(counts.get("rows", 0))
        self.held_out += int(counts.get("held_out", 0))
        self.quarantined += int(counts.get("quarantined", 0))
        self.reasons.update(counts.get("reasons", {}))
        self.classes = _with(self.classes, counts.get("classes", {}))

    def count_assigned(self, classes: Mapping[str, int]) -> None:
        """Count a shard of these classes that became part of a task."""
        self.assigned += 1
        self.closed_classes = _with(self.closed_classes, classes)


def _with(known: Set[str], names: Mapping[str, int]) -> Set[str]:
    return known if names.keys() <= known else known | names.keys()
