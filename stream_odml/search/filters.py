"""Which items a query may find: by class, attributes and time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.search.columns import NO_TIME, Columns
from stream_odml.search.exact import Mask


@dataclass(frozen=True)
class Filters:
    """All that is given must hold. Times without a zone are UTC; an item without a time is in no time range."""

    classes: frozenset[str] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Attributes that must have exactly these values."""
    since: datetime | None = None
    """At this time or later."""
    until: datetime | None = None
    """Before this time."""

    def __bool__(self) -> bool:
        return any(v is not None for v in (self.classes, self.since, self.until)) or bool(self.attributes)

    def mask(self, columns: Columns) -> Mask:
        """Return where the filter holds, bool [n]."""
        mask = np.ones(columns.n, dtype=bool)
        if self.classes is not None:
            wanted = np.array([name in self.classes for name in columns.names["class_name"].names], bool)
            mask &= wanted[columns.array("class_name")] if len(wanted) else False
        if self.since is not None or self.until is not None:
            times = columns.array("time")
            mask &= times != NO_TIME
            if self.since is not None:
                mask &= times >= _microseconds(self.since)
            if self.until is not None:
                mask &= times < _microseconds(self.until)
        if self.attributes and columns.n:
            mask &= self._with_attributes(columns)
        return mask

    def _with_attributes(self, columns: Columns) -> Mask:
        # Attributes may differ from item to item (a path does): only texts that hold all that is wanted are parsed.
        column = columns.attributes.column
        wanted = self.attributes.items()
        found: Mask = np.ones(columns.n, dtype=bool)
        for part in {json.dumps(part) for pair in wanted for part in pair}:
            found &= pc.match_substring(column, part).to_numpy()
        rows = np.flatnonzero(found)
        encoded = pa.array(column.take(pa.array(rows)).to_pylist(), pa.string()).dictionary_encode()
        texts = (json.loads(text) for text in encoded.dictionary.to_pylist())
        holds = np.array([wanted <= text.items() for text in texts], dtype=bool)
        if len(rows):
            found[rows] = holds[encoded.indices.to_numpy(zero_copy_only=False)]
        return found


def _microseconds(time: datetime) -> int:
    zoned = time if time.tzinfo else time.replace(tzinfo=UTC)
    # Not by a float of seconds: one in eighty times would be a microsecond off.
    return (zoned - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
