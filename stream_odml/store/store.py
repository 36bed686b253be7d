"""The reader: one stream root as it is now, brought up to date by reading only what came.

Protects the visibility rule: rows count when, and only when, the ledger or the version tree names their transaction.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, solve_head
from stream_odml.learn.drift import DriftMap, drift_map_from_bytes
from stream_odml.learn.feature_codes import FeatureCodes, FeatureFormat
from stream_odml.learn.lift import Lift
from stream_odml.storage.files import open_files
from stream_odml.storage.reading import scheme_of
from stream_odml.store.artifacts import HEAD, SUMS, read_artifact
from stream_odml.store.blocks import Blocks, compact
from stream_odml.store.data_file import as_dicts
from stream_odml.store.erased_refusals import erased_refusals
from stream_odml.store.errors import (
    ArtifactCorrupt,
    DataFileMissing,
    NotAStreamRoot,
    TableCorrupt,
    UnknownVersion,
)
from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import Attempt, TaskState
from stream_odml.store.local_cache import LocalCache
from stream_odml.store.mapping import Mapper
from stream_odml.store.origins import Origins
from stream_odml.store.recent import Recent
from stream_odml.store.refusal_counts import RefusalCounts
from stream_odml.store.select import visible_txns
from stream_odml.store.table import RootForm, Table
from stream_odml.store.tables import (
    GALLERY,
    SCHEMAS,
    VECTOR_COLUMNS,
    FloatArray,
    Form,
    decoded,
    features_of,
)
from stream_odml.store.versions import VersionTree

META = [name for name in GALLERY.names if name not in VECTOR_COLUMNS]
"""The gallery's columns that readers keep, in either form; vectors are read where they are needed."""
READ_ATTEMPTS = 5
HEADS_KEPT = 4
"""Discriminant heads, of some 30 MB each."""
T = TypeVar("T")
_META = pa.schema([GALLERY.field(name) for name in META])


class Store:
    """A stream root, read. Not for use by several threads at once; what it returns is immutable."""

    def __init__(
        self, uri: str, storage_options: dict[str, str] | None = None, keep_gallery: bool = True
    ) -> None:
        self.files = open_files(uri, storage_options)
        self.uri = self.files.uri
        self.storage_options = storage_options
        self._followed = {
            name: Table(self.files, name, storage_options) for name in SCHEMAS if name != "quarantine"
        }
        gallery = self._followed["gallery"]
        self._form, self.stream_id = gallery.form, self._followed["ledger"].id
        self.dim, self.form, self.row_codes = self._form.dim, self._form.form, self._form.row_codes
        """Length of a stored vector; whether that is an embedding or a trunk feature, from which each head makes its
        own; how features are coded, for `gallery_rows` (None: embeddings)."""
        self.gallery_schema = gallery.schema
        self.origins = Origins(self.files)
        self.ledger = LedgerState()
        self.tree = VersionTree()
        self.mapper = Mapper(self._drift)
        self._local_cache = LocalCache() if scheme_of(self.uri) else None
        self._heads: Recent[str, DiscriminantHead] = Recent(HEADS_KEPT)
        self._keep = keep_gallery
        self._paths: list[str] = []
        self._blocks = Blocks()
        self._refusals = RefusalCounts()
        self._txns: dict[str, frozenset[str]] = {}
        self.refresh()

    @staticmethod
    def create(
        uri: str,
        dim: int,
        storage_options: dict[str, str] | None = None,
        *,
        form: Form = "embedding",
        codes: FeatureFormat = "int8",
        keep_gallery: bool = True,
    ) -> "Store":
        """Make a stream root for vectors of dimension `dim`, or open the one that is there.

        In `exact` form they are trunk features, stored as `codes`. Raises ValueError as `check_form` does.
        """
        wanted = RootForm(dim, form, codes)
        files = open_files(uri, storage_options)
        # The quarantine first, which `open` passes over: a root that can be opened is whole.
        for name in reversed(SCHEMAS):
            Table.create(files, name, wanted, storage_options)
        store = Store.open(uri, storage_options, keep_gallery)
        store.check_form(wanted)
        return store

    def check_form(self, wanted: RootForm) -> None:
        """Raise ValueError when the root was made with another dimension, form or codes."""
        if self._form.to_json() != wanted.to_json():
            raise ValueError(
                f"{self.uri} holds {self._form}, asked for {wanted}; "
                "use the model and the configuration that it was made with, or another stream root"
            )

    @staticmethod
    def open(uri: str, storage_options: dict[str, str] | None = None, keep_gallery: bool = True) -> "Store":
        """Open a stream root. Raises NotAStreamRoot, UnfinishedBackup, or SchemaTooNew when a newer release wrote it.

        Without `keep_gallery` its memory does not grow with the gallery, whose rows are read when asked for:
        for processes that learn and index, and search nothing.
        """
        try:
            store = Store(uri, storage_options, keep_gallery)
        except (NotAStreamRoot, TableCorrupt, DataFileMissing):
            with contextlib.suppress(OSError, DeltaError):
                Origins(open_files(uri, storage_options)).check_finished()
            raise
        # After the tables, whose client lets other threads go on while a store hangs.
        store.origins.check_finished()
        return store

    @staticmethod
    def id_of(uri: str, storage_options: dict[str, str] | None = None) -> str:
        """Return the `stream_id` of a root, read without the rest of it. Raises as `open` does."""
        return Table(open_files(uri, storage_options), "ledger", storage_options).id

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables. The quarantine, which few readers ask for, is opened with the first look at this."""
        return {**self._followed, "quarantine": Table(self.files, "quarantine", self.storage_options)}

    def refresh(self) -> bool:
        """Take in what was committed since; True when something was. Some 60 µs when there is nothing."""
        marks = [(table, table.seen) for table in self._followed.values()]
        held = self._paths, self._blocks, self._txns
        try:
            for _ in range(READ_ATTEMPTS):
                try:
                    return self._refresh()
                except FileNotFoundError:
                    # Compacted and vacuumed while it was read: the log names its successor by now.
                    self.forget_seen()
            return self._refresh()
        except Exception:
            # Unreachable, or gone for good: what was named but not read is named again, and what is held stays held.
            self._paths, self._blocks, self._txns = held
            for table, seen in marks:
                table.seen = seen
            raise

    def table(self, name: str) -> Table:
        """Return a table as it was read last; the quarantine, which `refresh` passes over, as it is now."""
        found = self._followed.get(name) or self.tables[name]
        if name == "quarantine":
            found.refresh()
        return found

    def missing_files(self) -> list[str]:
        """Return data files that a table's log names and that are not there, as `table/file`: one listing
        for each table."""
        missing = []
        for name in self.tables:
            table = self.table(name)
            there = {info.path for info in self.files.list(name)} if table.present else set()
            missing += [path for path in sorted(f"{name}/{p}" for p in table.present) if path not in there]
        return missing

    def forget_seen(self) -> None:
        """Let the next `refresh` read every file again, because one of them went while it was read."""
        for table in self._followed.values():
            table.forget_seen()
        self._paths, self._blocks, self._txns = [], Blocks(), {}

    def _refresh(self) -> bool:
        new = self._refresh_ledger() | self._refresh_tree()
        while True:
            came, went = self._followed["gallery"].refresh()
            gone = set(went)
            if self._keep:
                self._take_in(came, gone)
            self._paths = [p for p in self._paths if p not in gone] + came
            new |= bool(came or went)
            # A file that went may have held rows that a ledger row of this very moment replaces: look again.
            if not went or not (self._refresh_ledger() | self._refresh_tree()):
                return new

    def _take_in(self, came: list[str], gone: set[str]) -> None:
        fresh = {path: self._block(path) for path in came}
        txns = {path: frozenset(block["txn"].unique().to_pylist()) for path, block in fresh.items()}
        self._blocks = self._blocks.changed(gone, fresh.items())
        self._txns = {path: names for path, names in self._txns.items() if path not in gone} | txns

    def _block(self, path: str) -> pa.Table:
        return compact(self._followed["gallery"].read(path, META))

    def _refresh_ledger(self) -> bool:
        before = self.ledger
        rows = map(self.origins.relocated, _new_rows(self._followed["ledger"], before.seq))
        self.ledger = LedgerState.replay(rows, before)
        return before.seq != self.ledger.seq

    def _refresh_tree(self) -> bool:
        before = self.tree
        self.tree = VersionTree.replay(_new_rows(self._followed["versions"], before.seq), before)
        return before.seq != self.tree.seq

    @property
    def epoch(self) -> int:
        """The newest writer's epoch that this handle has seen."""
        return max(self.ledger.epoch, self.tree.epoch)

    @property
    def commits(self) -> int:
        """How many commits all tables together have had, as far as this handle has seen."""
        return sum(table.version + 1 for table in self.tables.values())

    @property
    def blocks(self) -> dict[str, pa.Table]:
        """The gallery's data files, oldest first, without their vectors; visible and invisible rows alike. The columns
        of `REPEATED` are dictionaries."""
        return self._blocks.files() if self._keep else {path: self._block(path) for path in self._paths}

    def metadata(self) -> pa.Table:
        """Return all of `blocks` one after the other."""
        parts = self._blocks.tables() if self._keep else list(self.blocks.values())
        whole = pa.concat_tables(parts) if parts else compact(_META.empty_table())
        return whole.unify_dictionaries()

    def rows_of(self, txns: frozenset[str]) -> list[tuple[str, pa.Table, pa.Array]]:
        """Return (file, its rows, bool [n]: which of them are of `txns`) for the files that have any."""
        wanted, kept = pa.array(sorted(txns), pa.string()), self._blocks.files() if txns else {}
        found = []
        for path in self._paths if txns else ():
            if not self._keep or not txns.isdisjoint(self._txns[path]):
                block = kept[path] if self._keep else self._block(path)
                named = pc.is_in(block["txn"].cast(pa.string()), value_set=wanted)
                found.append((path, block, named.combine_chunks()))
        return found

    def scan(
        self, columns: Sequence[str] | None, where: pc.Expression | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield (file, its rows that pass) in the order of `blocks`, visible and invisible rows alike.

        Row groups whose statistics rule them out are not read. Raises FileNotFoundError for a file that was
        merged and vacuumed meanwhile: use it under `again`.
        """
        for path in list(self._paths):
            rows = self._followed["gallery"].read(path, columns, where)
            if len(rows):
                yield path, rows

    def again(self, read: Callable[[], T]) -> T:
        """Return what `read` gives, tried again with the files of the moment when one of them was vacuumed."""
        for _ in range(READ_ATTEMPTS):
            try:
                return read()
            except FileNotFoundError:
                self.forget_seen()
                self.refresh()
        return read()

    def visible_txns(self) -> frozenset[str]:
        """Return transactions whose gallery and quarantine rows count."""
        return visible_txns(self.ledger, self.tree)

    def gallery_rows(self, vectors: bool = True) -> pa.Table:
        """Return all visible gallery rows as stored: raw vectors, superseded and forgotten rows included. For tools and
        tests; a searchable picture is `GallerySnapshot`."""
        columns = self.gallery_schema.names if vectors else META
        return self._visible(self._followed["gallery"].read_all(columns))

    def quarantine_rows(self) -> pa.Table:
        """Return all visible quarantine rows, without those that name what was erased."""
        rows = self._visible(self.table("quarantine").read_all())
        erased = erased_refusals(rows, self.ledger.shards, self.ledger.latest_tombstones)
        return rows.filter(pa.array(~erased))

    def refused(self) -> dict[str, int]:
        """Return how many rows that indexing refused are in the quarantine, by reason."""
        return self._refusals.count(lambda: self.tables["quarantine"], self.ledger)

    def _visible(self, table: pa.Table) -> pa.Table:
        txns = pa.array(sorted(self.visible_txns()), pa.string())
        return table.filter(pc.is_in(table["txn"], value_set=txns))

    def vectors(self, path: str) -> FloatArray:
        """Return the raw vectors float32 [n, dim] of one data file of `blocks`: in exact
        form, decoded features."""
        return decoded(self._vector_columns(path), self.dim)

    def features(self, path: str) -> FeatureCodes:
        """Return the trunk features of one data file, as stored. Raises ValueError in embedding form."""
        if self.row_codes is None:
            raise ValueError(
                f"{self.uri} stores embeddings, not trunk features: it was created in embedding form"
            )
        return features_of(self._vector_columns(path), self.dim)

    def _vector_columns(self, path: str) -> pa.Table:
        columns = [name for name in self.gallery_schema.names if name in VECTOR_COLUMNS]
        return self._followed["gallery"].read(path, columns)

    def artifact(self, version_id: str, name: str) -> bytes:
        """Return the bytes of a committed version's artifact. Raises UnknownVersion, ArtifactCorrupt."""
        version = self.tree.get(version_id)
        if name not in version.artifacts:
            raise ArtifactCorrupt(
                f"version {version_id} has no artifact {name!r}, only {sorted(version.artifacts)}"
            )
        return read_artifact(self.files, version.artifacts[name])

    def head_of(self, version_id: str) -> DiscriminantHead:
        """Return the head of a version of a root in exact form; one without an artifact compares features as they are.
        Raises UnknownVersion for a version that retention has dropped, once its head has gone too."""
        version = self.tree.get(version_id)
        ref = version.artifacts.get(HEAD)
        if ref is None:
            return solve_head(ClassSums.empty(Lift(self.dim)))
        if not self.tree.keeps_head(version_id):
            raise UnknownVersion(
                f"the head of version {version_id} was dropped, by retention or because something that it was solved "
                "of was erased, so vectors that it made cannot be compared any more; embed the images again"
            )
        return self._heads.get(ref.path, lambda: DiscriminantHead.from_bytes(self.artifact(version_id, HEAD)))

    def sums_of(self, version_id: str) -> ClassSums | None:
        """Return the class sums of a version, as they were committed, if it has any."""
        has_sums = SUMS in self.tree.get(version_id).artifacts
        return ClassSums.from_bytes(self.artifact(version_id, SUMS)) if has_sums else None

    def next_task(self) -> TaskState | None:
        """Return the closed task to learn now: the first that the head's path has not learnt and nobody skipped."""
        return next(iter(self.ledger.due_tasks(self.tree.learnt())), None)

    def current_attempt(self, task_id: str, parent: str) -> Attempt | None:
        """Return the attempt to go on with after a restart, if one is under way."""
        return self.ledger.current_attempt(task_id, parent, self.tree.versions.keys())

    def open_attempt(self, version_id: str, head: str | None = None) -> Attempt | None:
        """Return the attempt to improve what is learnt of this id, if its result can be published under `head` (by
        default the one that is served): neither refused nor committed, and under the trunk from which it began."""
        head = head or self.tree.head
        attempt = self.ledger.later_attempts.get(version_id)
        if attempt is None or attempt.refused is not None or version_id in self.tree.versions:
            return None
        descends = attempt.parent in self.tree.lineage(head) and self.tree.same_trunk(attempt.parent, head)
        return attempt if descends else None

    def _drift(self, version_id: str, name: str) -> DriftMap:
        fetch, cache = partial(self.artifact, version_id, name), self._local_cache
        return drift_map_from_bytes(fetch() if cache is None else cache.get(f"{version_id}/{name}", fetch))


def _new_rows(table: Table, seq: int) -> list[dict[str, Any]]:
    """Return rows behind `seq` of the files that came; a merged file repeats the others, which were replayed before."""
    came, _ = table.refresh()
    behind = pc.field("seq") > seq if seq >= 0 else None
    try:
        return [row for path in came for row in as_dicts(table.read(path, where=behind))]
    except OverflowError as error:
        raise TableCorrupt(
            f"the table {table.name!r} has a time outside the calendar ({error}); restore the root from a backup"
        ) from error
