"""The gallery's files as a reader keeps them, without their vectors: small ones together in one Arrow table.

A table of twenty rows takes 16 KB, of which the rows are a tenth: who follows a stream has thousands.
Protects: the files keep their order, and what was returned never changes.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

import pyarrow as pa

LARGE = 1 << 16
"""Rows from which a table is left as it is."""
REPEATED = ("class_name", "shard_id", "attributes", "version", "txn")
"""Columns of few distinct values, kept once each."""


@dataclass(frozen=True)
class _Pack:
    """Files of `rows` rows each, one after the other in `table`."""

    rows: Mapping[str, int]
    table: pa.Table

    def files(self) -> Iterator[tuple[str, pa.Table]]:
        start = 0
        for path, count in self.rows.items():
            yield path, self.table.slice(start, count)
            start += count


class Blocks:
    """Immutable."""

    def __init__(self, packs: tuple[_Pack, ...] = ()) -> None:
        self._packs = packs

    def changed(self, gone: Set[str], came: Iterable[tuple[str, pa.Table]]) -> "Blocks":
        """Return blocks without the files `gone`, and with those that `came` behind the others."""
        packs: list[_Pack] = []
        for pack in self._packs:
            if gone.isdisjoint(pack.rows):
                packs.append(pack)
            else:
                packs += [_Pack({path: len(t)}, t) for path, t in pack.files() if path not in gone]
        for path, table in came:
            packs.append(_Pack({path: len(table)}, table))
            # Each is at least twice the next, as the digits of a counter: a row is copied a few times in all.
            while len(packs) > 1 and len(packs[-2].table) <= min(LARGE, 2 * len(packs[-1].table) + 1):
                first, second = packs[-2:]
                table = pa.concat_tables([first.table, second.table]).unify_dictionaries().combine_chunks()
                packs[-2:] = [_Pack({**first.rows, **second.rows}, table)]
        return Blocks(tuple(packs))

    def files(self) -> dict[str, pa.Table]:
        """Return each file's rows, in order."""
        return {path: table for pack in self._packs for path, table in pack.files()}

    def tables(self) -> list[pa.Table]:
        """Return all rows in the same order, in few tables."""
        return [pack.table for pack in self._packs]


def compact(block: pa.Table) -> pa.Table:
    """Return the rows with the columns of `REPEATED` as dictionaries."""
    for name in REPEATED:
        at = block.schema.get_field_index(name)
        block = block.set_column(at, name, block[name].dictionary_encode())
    return block
