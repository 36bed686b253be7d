"""What a request for erasure names: the items that it covers, or the nearest names where it covers none.

Protects: a tombstone is put over something that is there, or was. A name that nothing ever bore is an error for
whoever asked, never a promise kept of itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.ingest.fields import MAX_NAME_CHARS, normalised
from stream_odml.pipeline.sampling import without_dead
from stream_odml.store.errors import UnknownSubject
from stream_odml.store.ledger import LedgerState
from stream_odml.store.store import Store
from stream_odml.store.tables import GALLERY
from stream_odml.wording import some

Kind = Literal["class", "item", "shard"]
COLUMN = {"class": "class_name", "item": "item_id", "shard": "shard_id"}
_ROWS = ["item_id", "class_name", "shard_id", "txn"]
NEAREST = 3
MAX_COMPARED = 2000
"""Names that are compared with a wrong one; of more, those that begin or end like it."""
MAX_SCANNED = 500_000
"""Rows of the gallery, about, whose ids are looked at for a wrong one."""


@dataclass(frozen=True)
class Subject:
    """One name as it is stored, and how many items that readers still see it covers."""

    kind: Kind
    name: str
    items: int


def find_subject(store: Store, kind: str, name: str) -> Subject:
    """Return what `name` stands for in `store` as it was last refreshed. A name that was forgotten before, or of
    which nothing is left, covers nothing new, and is no error: a request may be repeated. A shard goes by its id, or
    by its name where one shard has it. Raises UnknownSubject with the nearest names, ValueError for another kind."""
    if kind not in get_args(Kind):
        raise ValueError(f"cannot forget a {kind!r}; name a class, an item or a shard")
    wanted = stored_name(store.ledger, kind, name)
    items = _covered(store, kind, wanted) if _is_text(wanted) else 0
    known = (kind, wanted) in store.ledger.latest_tombstones
    if not (items or known or was_there(store, kind, wanted)):
        raise unknown(store, kind, wanted)
    return Subject(cast(Kind, kind), wanted, items)


def was_there(store: Store, kind: str, name: str) -> bool:
    """Return whether something that was indexed bore this name, though nothing that can be found does any more: it was
    erased under another name, or replaced. A request for it covers what files still hold, and can be verified."""
    if not _is_text(name):
        return False
    if kind == "shard":
        return name in store.ledger.shards
    if kind == "class":
        return any(shard.classes.get(name) for shard in store.ledger.shards.values())
    where = pc.field(COLUMN[kind]) == name
    return bool(store.again(lambda: list(store.scan(_ROWS, where))))


def stored_name(ledger: LedgerState, kind: str, name: str) -> str:
    """Return `name` as landing stores it; of a shard's name the id. Raises UnknownSubject for one of several."""
    wanted = normalised(name)
    if kind != "shard" or wanted in ledger.shards:
        return wanted
    ids = [shard.shard_id for shard in ledger.shards.values() if shard.name == wanted]
    if len(ids) > 1:
        raise UnknownSubject(f"{len(ids)} shards are called {wanted!r}; name one by its id: {some(ids, 5)}")
    return ids[0] if ids else wanted


def unknown(store: Store, kind: str, name: str) -> UnknownSubject:
    """Return the error for a name that covers nothing, with the nearest ones that do."""
    near = nearest(name, _names(store, kind))
    waiting = len(store.ledger.landed)
    parts = [
        f"no {kind} {name[:80]!r} is in this stream, so nothing is forgotten",
        f"the nearest names are {', '.join(map(repr, near))}" if near else "",
        f"{waiting} landed shards are not indexed yet: ask again once they are"
        if waiting
        else "what was pushed a moment ago is not indexed yet: ask again once it is found",
    ]
    return UnknownSubject("; ".join(part for part in parts if part))


def nearest(name: str, names: Sequence[str]) -> list[str]:
    """Return the few of `names` that are most like `name`, whatever their case."""
    if len(name) > 2 * MAX_NAME_CHARS:
        return []
    wanted = name.casefold()
    folded = {known.casefold(): known for known in _like(wanted, names)}
    return [folded[match] for match in difflib.get_close_matches(wanted, folded, NEAREST)]


def _like(wanted: str, names: Sequence[str]) -> Iterable[str]:
    if len(names) <= MAX_COMPARED:
        return names
    ends = (wanted[:3], wanted[-3:])
    like = (n for n in names if n[:3].casefold() == ends[0] or n[-3:].casefold() == ends[1])
    return [known for _, known in zip(range(MAX_COMPARED), like, strict=False)]


def _covered(store: Store, kind: str, name: str) -> int:
    """Return how many items have rows of `name` that no tombstone covers yet."""
    where = pc.field(COLUMN[kind]) == name
    parts = store.again(lambda: [rows for _, rows in store.scan(_ROWS, where)])
    return len(_living(store, parts)["item_id"].unique())


def _living(store: Store, parts: Sequence[pa.Table]) -> pa.Table:
    return without_dead(store, pa.concat_tables([GALLERY.empty_table().select(_ROWS), *parts]))


def _names(store: Store, kind: str) -> Sequence[str]:
    """Return names of this kind that a request could still cover."""
    tombstones = store.ledger.latest_tombstones
    shards = [
        s for s in store.ledger.shards.values() if tombstones.get(("shard", s.shard_id), -1) < s.landed_seq
    ]
    if kind == "shard":
        return list(dict.fromkeys([*(s.shard_id for s in shards), *(s.name for s in shards)]))
    if kind == "class":
        living = ((name, s.landed_seq) for s in shards for name in s.classes)
        return list(dict.fromkeys(name for name, seq in living if tombstones.get(("class", name), -1) < seq))
    ids = _living(store, store.again(lambda: _some_rows(store)))["item_id"]
    return cast(list[str], ids.unique().to_pylist())


def _some_rows(store: Store) -> list[pa.Table]:
    parts: list[pa.Table] = []
    for _, rows in store.scan(_ROWS, pc.scalar(True)):
        parts.append(rows)
        if sum(map(len, parts)) >= MAX_SCANNED:
            break
    return parts


def _is_text(name: str) -> bool:
    """Return whether a name can be in a table at all; what came from a command line may hold bytes that are no text."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
