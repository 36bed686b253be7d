"""The sources that a configuration names, and the inbox of images pushed over HTTP."""

from __future__ import annotations

import contextlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.ingest.kafka_process import KafkaProcess
from stream_odml.ingest.object_store import S3Source
from stream_odml.ingest.reasons import BadShard, Reason, TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.ingest.sources import DirectorySource, LogSource, Source
from stream_odml.storage.outside import is_root
from stream_odml.storage.reading import join, local_path, scheme_of
from stream_odml.store.layout import COPIED, NOT_COPIED, PUSH, SPOOL

TABLES = {
    "delta": "stream_odml.ingest.delta_source:DeltaTableSource",
    "iceberg": "stream_odml.ingest.iceberg_source:IcebergSource",
    "lance": "stream_odml.ingest.lance_source:LanceTableSource",
}
"""Kinds of tables that are followed by version."""


def inbox_path(config: StreamConfig) -> str:
    """Return the source's place: a relative folder lies under the stream root, in an object store as on a disk. Raises
    ConfigError for a folder that holds files of the stream's own."""
    path, kind = config.source.path, config.source.kind
    if kind not in ("directory", "s3"):
        return path
    if kind == "s3":
        place = path if scheme_of(path) else f"s3://{path}"
    elif Path(path).is_absolute():
        place = path
    elif scheme_of(config.root):
        place = join(config.root, path)
    else:
        place = str(Path(config.root) / path)
    _check_apart(place, config)
    return place


def _check_apart(place: str, config: StreamConfig) -> None:
    # No folder of this machine lies in an object store: a prefix there is compared as it is written.
    inbox, root = (Path(one if scheme_of(one) else os.path.realpath(one)) for one in (place, config.root))
    own = {*COPIED, *NOT_COPIED} - {"inbox"}
    what = "a stream root" if is_root(place) else ""
    are_comparable = bool(scheme_of(place)) == bool(scheme_of(config.root))
    if are_comparable and root.is_relative_to(inbox):
        what = f"the stream root {config.root}, or a folder around it"
    elif are_comparable and inbox.is_relative_to(root) and inbox.relative_to(root).parts[0] in own:
        what = f"a folder of the stream's own in {config.root}"
    if what:
        raise ConfigError(
            f"source.path {config.source.path!r} is {what}, whose files would be taken for shards; "
            "name a place of its own, or leave `source` out: then it is inbox in the root"
        )


def push_path(config: StreamConfig) -> str:
    """Return where the service lands pushed images."""
    return config.service.push_dir or f"{config.root.rstrip('/')}/{PUSH}"


def spool_path(config: StreamConfig) -> str:
    """Return where messages of topics are copied to."""
    return f"{config.root.rstrip('/')}/{SPOOL}"


def read_options(config: StreamConfig, uri: str) -> dict[str, str] | None:
    """Return storage options of a shard: those of the store for what was pushed or copied, else those of the source."""
    # Name by name: `push-old/x` is not in `push`.
    ours = tuple(f"{_whole(place).rstrip('/')}/" for place in (push_path(config), spool_path(config)))
    if _whole(uri).startswith(ours):
        return config.storage_options
    return _source_options(config)


def _source_options(config: StreamConfig) -> dict[str, str] | None:
    """Return the options of the source; where it says none, an inbox under the stream root has those of the root."""
    given = dict(config.source.storage_options) or None
    return given or (config.storage_options if config.source.kind == "directory" else None)


def is_gone(config: StreamConfig, ref: ShardRef) -> bool:
    """Return whether a landed shard is seen to be no longer there. One that the medium does not give now is not gone;
    one that was taken over with a gallery never had images."""
    if ref.format == "adopted":
        return True
    with contextlib.suppress(TransientReadError):
        try:
            ShardFile(ref.uri, read_options(config, ref.uri)).close()
        except BadShard as error:
            return error.reason is Reason.MISSING_FILE
    return False


def _whole(place: str) -> str:
    return place if scheme_of(place.removeprefix("file://")) else str(local_path(place).absolute())


def open_sources(config: StreamConfig) -> list[Source]:
    """Return all places that the driver watches. Raises ConfigError for one that cannot be."""
    options = _source_options(config)
    sources: list[Source] = []
    if config.source.kind in ("directory", "s3"):
        sources.append(_inbox(inbox_path(config), options))
    elif config.source.kind in TABLES:
        sources.append(_table(config, options))
    elif config.source.kind == "kafka":
        sources.append(_kafka(config))
    elif config.source.kind != "none":
        sources.append(_made_by(config.source.kind, config.source.path, options or {}))
    sources.append(_inbox(push_path(config), config.storage_options))
    return sources


def check_sources(config: StreamConfig) -> None:
    """Raise ConfigError for a place that cannot be watched."""
    for source in open_sources(config):
        if isinstance(source, LogSource):
            source.close()


def _table(config: StreamConfig, options: dict[str, str] | None) -> Source:
    """Return a table that is followed by version. Imported here: its library is an extra, not installed everywhere."""
    with _needing_library(config.source.kind):
        made = pkgutil.resolve_name(TABLES[config.source.kind])
    table: Source = made(config.source.path, options, config.source.start_version)
    return table


def _kafka(config: StreamConfig) -> Source:
    topics = [topic for topic in (name.strip() for name in config.source.path.split(",")) if topic]
    if not topics:
        raise ConfigError(f"source.path {config.source.path!r}: expected topics, separated by commas")
    generation = config.source.kafka.generation
    if not isinstance(generation, int) and (others := sorted(generation.keys() - set(topics))):
        raise ConfigError(
            f"source.kafka.generation: {others[0]} is no topic of source.path {config.source.path!r}"
        )
    with _needing_library("kafka"):
        try:
            return KafkaProcess(topics, config.source.kafka, spool_path(config), config.storage_options)
        except ValueError as error:
            raise ConfigError(f"source.{error}") from error


@contextlib.contextmanager
def _needing_library(kind: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"source.kind {kind} needs a library that is not here ({error}): pip install 'stream-odml[{kind}]'"
        ) from error


def _made_by(factory: str, path: str, options: dict[str, str]) -> Source:
    """Return what a function of the user's makes. `factory`: `module:function`."""
    try:
        made: Source = pkgutil.resolve_name(factory)(path, options)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"source.kind {factory!r} cannot be had ({error}); its module must be importable where the driver runs"
        ) from error
    return made


def _inbox(path: str, options: dict[str, str] | None) -> Source:
    if scheme_of(path):
        return S3Source(path, options)
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        next(folder.iterdir(), None)
    except OSError as error:
        raise ConfigError(
            f"the inbox {path} cannot be read ({error.strerror}); make the folder readable or change `source.path`"
        ) from error
    return DirectorySource(path)
