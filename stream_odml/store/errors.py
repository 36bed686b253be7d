"""What can go wrong with a stream root, as small named errors that say what was seen and how to fix it."""

from deltalake.exceptions import DeltaError


class SchemaTooNew(ValueError):
    """A table was written by a newer release: reading it could misread it."""


class NotAStreamRoot(ValueError):
    """The folder or prefix holds no stream root (or only half of one)."""


class UnfinishedBackup(ValueError):
    """The folder or prefix holds a copy of a stream root that broke off."""


class TableCorrupt(ValueError):
    """A table's log, data file or row is not as a stream writes it."""


class LogCorrupt(TableCorrupt, DeltaError):
    """The Delta library cannot read a table's log."""


class DataFileMissing(FileNotFoundError):
    """A table's log names a data file that is not there, and still names it when the log is read again."""


class NoVersionYet(ValueError):
    """No model version is committed yet, so no vector can have a meaning."""


class RootBusy(RuntimeError):
    """Another writer holds the stream root and lives."""


class WriterFenced(RuntimeError):
    """A newer writer has claimed the stream root: this one must end without another commit."""


class ArtifactCorrupt(ValueError):
    """The bytes of an artifact are not those that were committed."""


class UnknownVersion(ValueError):
    """A vector names a model version that the store does not hold: it cannot be compared with anything."""


class AmbiguousVersion(UnknownVersion):
    """Several versions begin as was asked for."""


class StaleParent(ValueError):
    """The head moved while a stage was being learnt: its result no longer continues what is served."""


class UnknownSubject(ValueError):
    """A shard, task or version that the ledger does not know."""
