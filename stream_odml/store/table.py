"""One Delta table as its reader and its writer see it: which files came, which went, append without retry.

Protects the fence: an append from a handle that has not seen the latest commit fails instead of being rebased.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import ColumnProperties, CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from stream_odml.learn.feature_codes import FORMATS, FeatureFormat
from stream_odml.storage.delta_log import parse_commit
from stream_odml.storage.files import Files
from stream_odml.storage.reading import scheme_of, table_options
from stream_odml.storage.regular import UnsafePath, is_safe_path, open_regular
from stream_odml.store.data_file import Partition, read_data_file
from stream_odml.store.errors import DataFileMissing, LogCorrupt, NotAStreamRoot, SchemaTooNew, TableCorrupt
from stream_odml.store.tables import FORMS, SCHEMA_VERSION, SCHEMAS, SINCE, Form, gallery_schema
from stream_odml.wording import first_line

_REPEATED = ("class_name", "shard_id", "attributes", "version", "txn", "kind", "reason", "task", "subject")


ROW_GROUP = 1 << 15
LOOK_BACK = 20
CHECKPOINT_EVERY = 50
"""Commits from one checkpoint of a table's log to the next."""
UNREADABLE = frozenset({"deletionVectors", "columnMapping"})
"""Features of Delta with which a data file does not say which of its rows and columns count."""


@dataclass(frozen=True)
class RootForm:
    """What the metadata of each table of a root state: fixed when the root is created."""

    dim: int
    """Length of a stored vector: an embedding, or a trunk feature."""
    form: Form = "embedding"
    codes: FeatureFormat = "int8"
    """How features are coded, in exact form."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(
                f"dim is {self.dim}; it must be the embedding's or the feature's dimension, at least 1"
            )
        if self.form not in FORMS or self.codes not in FORMATS:
            raise ValueError(
                f"form {self.form!r} with codes {self.codes!r}; "
                f"expected one of {', '.join(FORMS)} and one of {', '.join(FORMATS)}"
            )

    @property
    def row_codes(self) -> FeatureFormat | None:
        """For `gallery_rows`: None in embedding form."""
        return self.codes if self.form == "exact" else None

    def schema(self, table: str) -> pa.Schema:
        """Return the columns of a table."""
        return gallery_schema(self.row_codes) if table == "gallery" else SCHEMAS[table]

    def to_json(self) -> str:
        """Return the text of a table's description. A root in embedding form is one that earlier releases read too."""
        stated = {"schema_version": SINCE[self.form], "dim": self.dim}
        more = {"form": self.form, "codes": self.codes} if self.form == "exact" else {}
        return json.dumps({**stated, **more})

    def __str__(self) -> str:
        what = f"features, {self.codes}," if self.form == "exact" else "embeddings"
        return f"{what} of dimension {self.dim}"


@dataclass(frozen=True)
class _Added:
    """When a data file was added (ms), and the columns that its table keeps in the log instead."""

    time: int
    partition: Partition


def writer_properties(name: str) -> WriterProperties:
    """Return dictionaries for repeated strings, none for vectors: without this a vector column reads
    ten times slower."""
    columns = {c: ColumnProperties(dictionary_enabled=True) for c in SCHEMAS[name].names if c in _REPEATED}
    if name == "gallery":
        # The smallest and the largest of all codes say nothing, and would stay in the log when their rows are erased.
        columns["codes"] = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
    return WriterProperties(
        compression="SNAPPY",
        max_row_group_size=ROW_GROUP,  # a whole group is held in memory while it is written
        column_properties=columns or None,
        default_column_properties=ColumnProperties(dictionary_enabled=False),
    )


class Table:
    """A handle on the table `name` under a stream root; `form` is what its metadata state."""

    def __init__(self, files: Files, name: str, storage_options: dict[str, str] | None = None) -> None:
        self.name = name
        self.files = files
        self._uri = uri = f"{files.uri}/{name}"
        self._options = table_options(uri, storage_options)
        files.only_regular(f"{name}/_delta_log")  # the Delta library would wait for ever on a FIFO
        try:
            with _reading_log(uri):
                self._handle = DeltaTable(uri, storage_options=self._options)
        except TableNotFoundError:
            raise NotAStreamRoot(
                f"no stream has run on {files.uri}: it has no table {name!r}; correct the path, or start a stream "
                "there with `stream-odml run CONFIG`"
            ) from None
        self._opened = self._handle.version()
        self.form = _checked_form(self._handle, uri)
        self.schema = self.form.schema(name)
        _check_features(self._handle, uri)
        self.id = _checked_id(self._handle, uri)
        """What Delta named the table when it was made; it never changes."""
        self.present: frozenset[str] = frozenset()
        self._log = None if scheme_of(uri) else Path(uri) / "_delta_log"
        self._files: dict[str, _Added] = {}
        self._version = self._seen = -1

    @staticmethod
    def create(
        files: Files, name: str, form: RootForm, storage_options: dict[str, str] | None = None
    ) -> None:
        """Create the table, or leave one that is there as it is."""
        uri = f"{files.uri}/{name}"
        DeltaTable.create(
            uri,
            schema=form.schema(name),
            mode="ignore",
            name=name,
            description=form.to_json(),
            configuration={"delta.checkpointInterval": str(CHECKPOINT_EVERY)},
            storage_options=table_options(uri, storage_options),
        )

    @property
    def handle(self) -> DeltaTable:
        """For commits: at the version that `refresh` saw last, never at a later one of somebody else's. Opened
        anew after each checkpoint: a handle keeps every commit that it makes, and the next takes longer."""
        aged = self._version // CHECKPOINT_EVERY > self._opened // CHECKPOINT_EVERY
        if aged or self._handle.version() < self._version:
            self._handle = DeltaTable(self._uri, version=self._version, storage_options=self._options)
            self._opened = self._version
        return self._handle

    def refresh(self) -> tuple[list[str], list[str]]:
        """Return (files that came, files that went) since the last call, oldest first; about 20 µs when nothing did.
        Raises NotAStreamRoot when the table is gone."""
        if self._version < 0:
            self._read_table()
        if not self._follow_log():
            self.files.only_regular(f"{self.name}/_delta_log")
            with _reading_log(self._uri):
                self._handle.update_incremental()
            self._read_table()
        if self._version == self._seen:
            return [], []
        known, self.present, self._seen = self.present, frozenset(self._files), self._version
        return [p for p in self.paths if p not in known], sorted(known - self.present)

    @property
    def paths(self) -> list[str]:
        """The data files, oldest first."""
        return sorted(self._files, key=lambda path: (self._files[path].time, path))

    @property
    def seen(self) -> tuple[frozenset[str], int]:
        """What `refresh` has named so far. Put an earlier value back, and it names the rest again."""
        return self.present, self._seen

    @seen.setter
    def seen(self, value: tuple[frozenset[str], int]) -> None:
        self.present, self._seen = value

    def forget_seen(self) -> None:
        """Let the next `refresh` name every file again, because reading one of them failed."""
        self.seen = frozenset(), -1

    def _read_table(self) -> None:
        _check_features(self._handle, self._uri)
        with _reading_log(self._uri):
            # Given an object of another library, `pa.table` would load pandas to ask whether it is a frame.
            stream = pa.RecordBatchReader.from_stream(self._handle.get_add_actions(flatten=True))
        actions = stream.read_all()
        times = actions["modification_time"].cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist()
        columns = {name: f"partition.{name}" for name in self._handle.metadata().partition_columns}
        values = {name: actions[column].cast(pa.string()).to_pylist() for name, column in columns.items()}
        self._files = {
            self._safe(unquote(path)): _Added(times[i], {name: of[i] for name, of in values.items()})
            for i, path in enumerate(actions["path"].to_pylist())
        }
        self._version = self._handle.version()

    def _follow_log(self) -> bool:
        """Take in the local commits after the one seen; False if they cannot be had one by one.

        The Delta library's own update keeps some 60 KB of every commit for ever (delta-io/delta-rs#4241) and takes
        longer the longer the log is: a replica that swaps for weeks, and answers meanwhile, can afford neither.
        """
        if self._log is None:
            return False
        before = self._version
        # The next commit is a file of a known name: to look for it costs no listing of the folder.
        while (following := self._log / f"{self._version + 1:020d}.json").exists():
            try:
                with open_regular(following) as file:
                    data = file.read()
            except FileNotFoundError:  # cleaned up this moment
                break
            try:
                commit = parse_commit(data)
            except ValueError:
                return self._version > before
            if commit.changes_table:
                return False  # the table is another than it was: the whole of it is read, and checked
            for path in commit.removed:
                self._files.pop(path, None)
            for one in commit.added:
                self._files[self._safe(one.path)] = _Added(one.time_ms, one.partition)
            self._version += 1
        if self._version > before or (self._log / f"{before:020d}.json").exists():
            return True
        # The log was cleaned up past a sleeping reader; or it is gone, in which the Delta library finds nothing new: a
        # reader would call itself up to date for ever.
        if not self._log.is_dir():
            raise NotAStreamRoot(
                f"{self.files.uri} lost its table {self.name!r}; was the folder removed, or its disk unmounted?"
            )
        return False

    def _safe(self, path: str) -> str:
        if not is_safe_path(path):
            raise UnsafePath(
                f"table {self._uri} names the data file {path[:200]!r}, which lies outside the table; "
                "it is not read: restore the table from a backup"
            )
        return path

    def read(
        self, path: str, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """Return one data file, or those of its rows that pass, in the types of this table's schema.

        Raises DataFileMissing when it was vacuumed in the meantime (refresh and read again), or removed;
        TableCorrupt when it is no such file.
        """
        added = self._files.get(path)
        partition = added.partition if added else {}
        try:
            self.files.check(f"{self.name}/{path}")
            filesystem = self.files.arrow(self.name)
            return read_data_file(filesystem, path, self.schema, columns, where, partition)
        except FileNotFoundError as error:
            raise DataFileMissing(
                f"table {self.name!r} of {self.files.uri} names the data file {path}, which is not there; if no "
                "maintenance has just replaced it, put the file back or restore the root from a backup"
            ) from error
        except (pa.ArrowException, KeyError) as error:
            # KeyError: partitioned by a column that is none of ours.
            raise TableCorrupt(
                f"the data file {path} of table {self.name!r} of {self.files.uri} cannot be read ({str(error)[:300]}); "
                "restore the root from a backup"
            ) from error

    def read_all(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of all data files. Errors as of `read`."""
        none = self.schema.empty_table().select(columns or self.schema.names)
        return pa.concat_tables([none, *(self.read(path, columns) for path in self.paths)])

    def append(self, rows: pa.Table | pa.RecordBatchReader, epoch: int, mark: str = "") -> None:
        """Make one commit, never retried. Raises CommitFailedError when another commit came first. A reader is written
        as it is read: what it yields at once is all that is in memory, and a row group."""
        write_deltalake(
            self.handle,
            rows,
            mode="append",
            commit_properties=commit_properties(epoch, mark),
            writer_properties=writer_properties(self.name),
        )

    @property
    def version(self) -> int:
        """The last commit that `refresh` took in."""
        return self._version

    def checkpoint(self) -> None:
        """Write a checkpoint, unless one is there, and delete the commits behind it that the table need not keep."""
        version = self.handle.version()
        if not self.files.exists(f"{self.name}/_delta_log/{version:020d}.checkpoint.parquet"):
            self.handle.create_checkpoint()
            self.handle.cleanup_metadata()

    def has(self, mark: str) -> bool:
        """Return whether one of the last commits carries `mark`: a store may make a commit and lose its answer."""
        return any(commit.get("mark") == mark for commit in self.handle.history(LOOK_BACK))


def commit_properties(epoch: int, mark: str = "", retries: int = 0) -> CommitProperties:
    """Return properties by which a commit names its writer's epoch, and is made once or not at all unless
    `retries` lets Delta rebase it."""
    return CommitProperties(max_commit_retries=retries, custom_metadata={"epoch": str(epoch), "mark": mark})


@contextmanager
def _reading_log(uri: str) -> Iterator[None]:
    """Raise LogCorrupt, in one line, for what the Delta library says of a log, which it ends with a trace of Rust."""
    try:
        yield
    except TableNotFoundError:
        raise
    except DeltaError as error:
        why = first_line(error)[:300]
        raise LogCorrupt(
            f"the log of the table {uri} cannot be read ({why}); restore the root from a backup"
        ) from error


def _check_features(handle: DeltaTable, uri: str) -> None:
    protocol = handle.protocol()
    mapped = handle.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
    found = UNREADABLE & set(protocol.reader_features or ()) | ({"columnMapping"} if mapped else set())
    if found:
        raise NotAStreamRoot(
            f"{uri} was rewritten with {', '.join(sorted(found))}, which stream-odml does not read; "
            "rewrite the table without them, or restore it from a backup"
        )


def _checked_id(handle: DeltaTable, uri: str) -> str:
    try:
        return str(uuid.UUID(str(handle.metadata().id)))
    except ValueError:
        raise NotAStreamRoot(
            f"{uri} has the table id {str(handle.metadata().id)[:80]!a}, which is no UUID; "
            "restore the root from a backup"
        ) from None


def _checked_form(handle: DeltaTable, uri: str) -> RootForm:
    try:
        stated = json.loads(handle.metadata().description or "")
        version, dim = int(stated["schema_version"]), int(stated["dim"])
        form, codes = str(stated.get("form", "embedding")), str(stated.get("codes", "int8"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise NotAStreamRoot(
            f"{uri} is a Delta table, but not one of a stream root; correct the path"
        ) from None
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{uri} has schema version {version}, this release reads up to {SCHEMA_VERSION}; "
            "upgrade stream-odml to open this stream root"
        )
    try:
        return RootForm(dim, cast(Form, form), cast(FeatureFormat, codes))
    except ValueError as error:
        raise NotAStreamRoot(f"{uri} states {error}; restore the root from a backup") from None
