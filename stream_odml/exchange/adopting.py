"""Taking over a gallery of another store: block by block, each of which is a shard that landed and was indexed at once.

Protects: a block is committed whole and once; the same command, after whatever ended it, goes on behind the last one.
Nothing is made before the source, the root and the model were found to fit. Vectors that a stream gave out begin a new
stream, and are never mixed with features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from stream_odml.config.masking import masked_text
from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.exchange.checking import Findings, Target, check
from stream_odml.exchange.errors import ExchangeError, SourceLost
from stream_odml.exchange.source import GallerySource
from stream_odml.ingest.shard import ShardRef
from stream_odml.learn.discriminant import HeadSettings
from stream_odml.pipeline.fast_stage import fast_stage
from stream_odml.pipeline.first_version import claim_root, root_there, stored_dim
from stream_odml.pipeline.stages import Stages
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer

ADOPTED = "adopted"
"""Format of a shard whose rows are in the root alone; also the key under which its counts name the source."""
PAUSES_S = (1.0, 5.0, 20.0)
"""Between two attempts at a source that breaks off; they begin anew with each block that comes."""
_UNIT = 1e-3


@dataclass(frozen=True)
class Report:
    """What an adoption found, of the rows that this command read."""

    source: str
    root: str
    dim: int
    items: int
    """Taken over by this command."""
    before: int
    """Taken over from this source before."""
    unlabelled: int
    classes: int
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Rows by reason."""
    duplicate_vectors: int = 0
    norms: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    """That has learnt them; empty where nothing was to be learnt."""
    seconds: float = 0.0
    note: str = ""
    """Of the source, on its vectors."""


def adopt(
    source: GallerySource,
    config: StreamConfig,
    *,
    learn: bool = True,
    settings: HeadSettings | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Report:
    """Take over all rows of a source that are not in the root yet, learn what has a class, and say what was found.

    `settings`: of the head, where they are not to be chosen by the items that are taken over. `progress` is called with
    rows done and rows in all. Raises ExchangeError, ConfigError and ValueError before
    anything is made, RootBusy while a stream runs on the root, SourceLost when the source breaks off for good.
    """
    began = time.perf_counter()
    there = root_there(config)
    _check_origin(source, there)
    config = fitted(config, source, there)
    _, writer = claim_root(config, there, f"adopt {source.name}", dim=source.dim)
    try:
        before, found = _taken(writer.store, source.identity), Findings()
        rows_before = sum(shard.rows for shard in before)
        found.ids.update(_ids_of(writer.store, before))
        _take(writer, source, config, before, found, progress)
        version = _learn(writer, config, source.identity, settings) if learn else ""
    finally:
        writer.release()
    return _report(source, config, found, rows_before, version, time.perf_counter() - began)


def fitted(config: StreamConfig, source: GallerySource, there: Store | None) -> StreamConfig:
    """Return the configuration with the length of the source's vectors. `there`: its root, where there is one. Raises
    ConfigError, ExchangeError."""
    if not config.solves_head:
        raise ConfigError(
            f"model.head: {config.model.head} cannot take vectors over, which are features in front of a head; "
            "set model.head: discriminant"
        )
    if config.model.takes_vectors:
        if config.model.input_dim not in (0, source.dim):
            raise ExchangeError(
                f"{source.name} has vectors of {source.dim} values, model.input_dim is {config.model.input_dim}; "
                "name the right source, or leave input_dim out"
            )
        spec = {**asdict(config.model), "input_dim": source.dim}
        config = config.model_copy(update={"model": type(config.model)(**spec)})
    elif config.learns_trunk:
        raise ConfigError(
            "the vectors are features of the model as it is, but its trunk would be learnt; name its weights "
            "(model.weights or model.pretrained) and set learning.trunk: frozen"
        )
    dim = stored_dim(config, there)
    if dim != source.dim:
        raise ExchangeError(
            f"{source.name} has vectors of {source.dim} values, {config.root} stores {dim}; "
            "name the model that made the vectors with --model, or another root"
        )
    return config


def _check_origin(source: GallerySource, there: Store | None) -> None:
    """Raise ExchangeError for vectors of a served version, unless they are all that was adopted into the root: features
    of its items are of another space."""
    if source.origin is None or there is None:
        return
    if source.origin.stream != there.stream_id:
        taken = [shard.counts.get(ADOPTED, {}) for shard in there.ledger.shards.values()]
        ours = source.identity, list(source.origin)
        # What an earlier release began to take over says nothing of its space.
        if not taken or any(said.get("source") == ours[0] or said.get("origin") == ours[1] for said in taken):
            return
    raise ExchangeError(
        f"{source.name} has {source.origin.words}, and {masked_text(there.uri)} holds vectors of another space; "
        "name a new root, or adopt what those vectors were made of"
    )


def _taken(store: Store, identity: str) -> list[ShardState]:
    """Return shards that came from this source, in their order."""
    shards = store.ledger.shards.values()
    return [shard for shard in shards if shard.counts.get(ADOPTED, {}).get("source") == identity]


def _ids_of(store: Store, shards: list[ShardState]) -> list[str]:
    if not shards:
        return []
    named = pc.field("shard_id").isin([shard.shard_id for shard in shards])
    parts = store.again(lambda: [rows for _, rows in store.scan(["item_id"], named)])
    return [item for rows in parts for item in rows["item_id"].to_pylist()]


def _take(
    writer: Writer,
    source: GallerySource,
    config: StreamConfig,
    before: list[ShardState],
    found: Findings,
    progress: Callable[[int, int | None], None],
) -> None:
    store = writer.store
    target = Target(
        dim=store.dim, version=store.tree.head, codes=store.row_codes, held_out=config.evaluation.held_out
    )
    said: dict[str, Any] = before[-1].counts[ADOPTED] if before else {"next": None, "read": 0}
    cursor, read, number, pauses = said["next"], int(said["read"]), len(before), list(PAUSES_S)
    progress(read, source.count)
    while True:
        try:
            for block in source.blocks(cursor):
                own = f"{ADOPTED}-{source.identity}-{number:06d}"
                shard_id = own if block.shard is None else block.shard.shard_id
                if block.shard is not None and shard_id in store.ledger.shards:
                    # The stream found it itself meanwhile, or has it from another source.
                    read += len(block.table)
                    continue
                batch = check(block.table, shard_id, target, found)
                read += len(block.table)
                about = {"source": source.identity, "place": masked_text(source.name), "next": block.cursor}
                about |= {"read": read, "error": block.error, "worst": block.worst}
                about |= {"origin": source.origin and list(source.origin)}
                batch = replace(batch, counts={shard_id: {**batch.counts[shard_id], ADOPTED: about}})
                writer.adopt(block.shard or _ref(shard_id, source, batch.rows.nbytes), batch)
                cursor, number, pauses = block.cursor, number + 1, list(PAUSES_S)
                # Dropped before the next block is read: two of them, with what was made of each, are what memory holds.
                del block, batch
                progress(read, source.count)
            return
        except SourceLost as error:
            if not pauses:
                raise SourceLost(
                    f"{masked_text(str(error))}; {read} rows of {source.name} are taken over, the same command goes on"
                ) from error
            time.sleep(pauses.pop(0))


def _ref(shard_id: str, source: GallerySource, size: int) -> ShardRef:
    uri = f"{masked_text(source.name)}#{shard_id}"
    return ShardRef(shard_id, shard_id, uri, ADOPTED, int(size), 0, shard_id)


def _learn(writer: Writer, config: StreamConfig, identity: str, settings: HeadSettings | None) -> str:
    """Close a task over what was taken over and has a class, and learn all that is due; the version served then."""
    waiting = [shard for shard in _taken(writer.store, identity) if shard.state == "indexed"]
    if any(any(shard.counts.get("trainable", {}).values()) for shard in waiting):
        task = writer.ledger.next_task_id
        writer.close_task(task, [shard.shard_id for shard in waiting], ADOPTED, {"name": identity})
    stages = Stages(writer, config.boundary, config.gate.retries, config.learns_trunk)
    version = ""
    while (order := stages.solve_next()) is not None:
        store = Store.open(config.root, config.storage_options)
        result = fast_stage(store, order, config, chosen=settings)
        head = stages.commit(result)
        version = head if result.refusal is None else version
    return version


def _report(
    source: GallerySource, config: StreamConfig, found: Findings, before: int, version: str, seconds: float
) -> Report:
    norms = np.concatenate(found.norms) if found.norms else np.empty(0, np.float32)
    hashes = np.concatenate(found.hashes) if found.hashes else np.empty(0, np.uint64)
    summary: dict[str, float] = {}
    if len(norms):
        summary = {
            "min": float(norms.min()),
            "median": float(np.median(norms)),
            "max": float(norms.max()),
            "unit_share": float((np.abs(norms - 1) <= _UNIT).mean()),
        }
    return Report(
        source=masked_text(source.name),
        root=masked_text(config.root),
        dim=source.dim,
        items=found.rows,
        before=before,
        unlabelled=found.unlabelled,
        classes=len(found.classes),
        quarantined=dict(found.reasons),
        # Sorted: `np.unique` takes twenty times as long for a million different numbers.
        duplicate_vectors=int((np.diff(np.sort(hashes)) == 0).sum()),
        norms=summary,
        version=version,
        seconds=round(seconds, 3),
        note=source.note,
    )
