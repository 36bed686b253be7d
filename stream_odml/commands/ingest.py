"""Landing what a user has as shards of a stream's inbox: the command `ingest`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stream_odml.stream.landing import complete_task, land_file, land_parquet
from stream_odml.stream.landing_folder import land_folder


def land_path(path: Path, inbox: str, rows_per_shard: int, task: str | None) -> Iterator[str]:
    """Land a folder of class folders, a Parquet file (cut into shards) or a tar; yields each shard's URI.

    With ``task`` a manifest says at the end that these shards are a complete task. Raises ValueError for a
    path without images.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a folder of class folders, a Parquet file or a tar")
    landed = []
    for uri in _land(path, inbox, rows_per_shard):
        landed.append(uri)
        yield uri
    if task is not None:
        yield complete_task(inbox, task, landed)


def _land(path: Path, inbox: str, rows_per_shard: int) -> Iterator[str]:
    if path.is_dir():
        yield land_folder(inbox, path)
    elif path.suffix == ".parquet":
        yield from land_parquet(inbox, path, rows_per_shard)
    else:
        yield land_file(inbox, path)
