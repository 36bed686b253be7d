"""Which rows of the quarantine say something of what was erased: those that name an erased item or class.

A refused row has no class and no id of its own: its text names them as whoever refused it wrote them. Only these
forms count, never a name that occurs by chance in a sentence; in doubt a row goes, which costs the reason of a
refusal and nothing else.

Protects: it is a function of the row's text and the ledger alone, so whoever asks again, after a kill or years
later, is given the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.tables import values

COLUMNS = ("shard_id", "row", "detail")
"""Of the quarantine, that the rule needs."""
LEFT_OUT = "left out of "
"""How the text of a row begins that was indexed, and could not be read when its task was learnt."""
_NAMED_AS = (
    re.compile(r"(?=(?:^|: )id (.*) came before in this (?:shard|source)$)", re.DOTALL),
    re.compile(r"(?=(?:^|: )item (.*) is not stored, so)", re.DOTALL),
    re.compile(r"(?=has its id, (.*), and came later$)", re.DOTALL),
)
_SHOWN = 200
"""Characters of an id that some texts show."""
_MAX_NAME = 256
_PLACE = re.compile(r": |['\"/]|(?:^|: )key ")
"""What stands before a path, or a folder of it."""
_NO_PATHS = frozenset({"messages"})
"""Formats whose rows lie in a topic, not in a folder of their class."""


def erased_refusals(
    rows: pa.Table,
    shards: Mapping[str, ShardState],
    tombstones: Mapping[tuple[str, str], int],
    gone: Mapping[str, int] | None = None,
) -> NDArray[np.bool_]:
    """Return which of these rows (of `COLUMNS`) are of an erased shard, or name an erased item or class.

    `tombstones` as `LedgerState.latest_tombstones`: each covers what landed before it. `gone`: items that an
    erased class or shard had, with the `seq` of its tombstone.
    """
    if not tombstones:
        return np.zeros(len(rows), bool)
    items = _forms({**_of("item", tombstones), **(gone or {})})
    classes = _of("class", tombstones)

    def is_erased(shard_id: str, row: int, detail: str) -> bool:
        shard = shards.get(shard_id)
        if shard is None:
            return False
        landed = shard.landed_seq
        if tombstones.get(("shard", shard_id), -1) > landed or items.get(f"{shard_id}/{row}", -1) > landed:
            return True
        if items and any(items.get(name, -1) > landed for name in _items_in(detail)):
            return True
        paths = bool(classes) and shard.format not in _NO_PATHS
        return paths and any(classes.get(name, -1) > landed for name in _folders_in(detail))

    return np.fromiter((is_erased(*row) for row in values(rows, *COLUMNS)), bool, len(rows))


def refusals_to_delete(
    rows: pa.Table,
    ledger: LedgerState,
    living: Callable[[], Set[tuple[str, int]]],
    gone: Mapping[str, int] | None = None,
) -> NDArray[np.bool_]:
    """Return which of these rows (of `COLUMNS`) must not stay: those above, and what a stage left out of rows
    that do not live any more. A text that does not name its item would stay when the item's row has gone.

    `living` gives (shard, row) of living items of these shards.
    """
    erased = erased_refusals(rows, ledger.shards, ledger.latest_tombstones, gone)
    left_out = [detail.startswith(LEFT_OUT) for detail in rows["detail"].to_pylist()]
    if any(left_out):
        places = living()
        away = [place not in places for place in values(rows, "shard_id", "row")]
        erased |= np.array(left_out) & np.array(away)
    return erased


def _of(kind: str, tombstones: Mapping[tuple[str, str], int]) -> dict[str, int]:
    return {name: seq for (of, name), seq in tombstones.items() if of == kind}


def _forms(items: Mapping[str, int]) -> dict[str, int]:
    """Return items by each form that a message may have them in: whole, quoted, and cut off."""
    found: dict[str, int] = {}
    for name, seq in items.items():
        for form in {name, name[:_SHOWN], f"{name!r:.200}"}:
            found[form] = max(seq, found.get(form, -1))
    return found


def _items_in(detail: str) -> Iterator[str]:
    """Yield every id that a text shows, and its paths: an item may be called by its file or message."""
    text = normalize("NFC", detail)
    for form in _NAMED_AS:
        yield from (match[1].strip() for match in form.finditer(text))
    if text.startswith(LEFT_OUT):
        text = text.partition(": ")[2]
    yield from (text[: colon.start()] for colon in re.finditer(": ", text))


def _folders_in(detail: str) -> Iterator[str]:
    """Yield every run of whole folders of the paths in a text, and what `class=...` in one says."""
    text = normalize("NFC", detail)
    plain = text.replace("\\\\", "\\").replace("\\'", "'")  # as it stands in a quoted path
    for shown in {text, plain}:
        ends = [at for at, char in enumerate(shown) if char == "/"]
        for start in (0, *(match.end() for match in _PLACE.finditer(shown))) if ends else ():
            for folder in (shown[start:end] for end in ends if start < end <= start + _MAX_NAME):
                yield folder
                if "=" in folder and "/" not in folder:
                    yield normalize("NFC", unquote(folder.partition("=")[2]))
