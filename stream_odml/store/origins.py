"""Where the landed files of a copied root lie: the ledger names the places where they landed, below the root of then.

Protects: a restored stream reads what was pushed or copied from a topic below its own root, wherever that is now, and
takes none of it for new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from deltalake.exceptions import TableNotFoundError

from stream_odml.storage.files import SMALL_FILE, Files
from stream_odml.store.errors import UnfinishedBackup
from stream_odml.store.layout import LANDED, MARK
from stream_odml.store.ledger_states import ShardState

ORIGINS = "origins"
UNFINISHED = "unfinished"
"""What the mark of a copy says until all of it is there."""


class Origins:
    """Places of roots that this one is a copy of, and whether that copy is whole."""

    def __init__(self, files: Files) -> None:
        self._root = files.uri.rstrip("/")
        mark = _mark(files)
        noted = mark.get(ORIGINS)  # earlier releases wrote none
        places = noted if isinstance(noted, list) else ()
        self.places = frozenset(place for place in places if isinstance(place, str))
        self._unfinished = bool(mark.get(UNFINISHED))

    def check_finished(self) -> None:
        """Raise UnfinishedBackup where a copy broke off: what is there may lack files, or tables."""
        if self._unfinished:
            raise UnfinishedBackup(
                f"{self._root} is a backup that broke off before all was copied; delete it, and make another one"
            )

    def relocated(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of the ledger: of a shard that landed below a root of before, with its place in this one."""
        if not self.places or row["kind"] != "landed":
            return row
        detail = json.loads(row["detail"])
        path = below(detail["uri"], self.places)
        if path is None:
            return row
        return {**row, "detail": json.dumps({**detail, "uri": f"{self._root}/{path}", "moved": True})}


def below(uri: str, places: Iterable[str]) -> str | None:
    """Return the path of a landed file below whichever of these roots it lies in, or None."""
    split = split_landed(uri)
    return None if split is None or split[0] not in places else split[1]


def split_landed(uri: str) -> tuple[str, str] | None:
    """Return the root and the path below it, of a place that may be a file of `LANDED`."""
    folder, _, name = uri.rpartition("/")
    root, _, kind = folder.rpartition("/")
    return (root, f"{kind}/{name}") if kind in LANDED and name else None


def origins_of(
    root: str, before: Iterable[str], shards: Iterable[ShardState], sizes: Mapping[str, int]
) -> list[str]:
    """Return the places under which the ledger names what lies below `root`: its own, those of before, and how else it
    was called when files landed that are there still (another mount, a link). `sizes`: bytes by path below the root."""
    found = {root.rstrip("/"): None, **dict.fromkeys(before)}
    for shard in shards:
        split = split_landed(shard.uri)
        if split is not None and sizes.get(split[1]) == shard.size_bytes:
            found[split[0]] = None
    return list(found)


def _mark(files: Files) -> dict[str, Any]:
    """Return what a copy says of itself; empty where that cannot be read, and of a root that is no copy."""
    try:
        mark = json.loads(files.read(MARK, SMALL_FILE))
    except (FileNotFoundError, IsADirectoryError, TableNotFoundError, ValueError, RecursionError):
        return {}  # the Delta library's client of a folder tells so that there is none
    return mark if isinstance(mark, dict) else {}
