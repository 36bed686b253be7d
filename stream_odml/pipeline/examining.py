"""Examines a stream root, reading all of it and changing nothing: tables, data files, artifacts, canaries, clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np

from stream_odml.learn.given_vectors import spec_of
from stream_odml.learn.packing import BadArtifact
from stream_odml.models.loading import load_model
from stream_odml.models.mismatch import CanaryMismatch
from stream_odml.store.artifacts import CANARIES, STUDENT, read_artifact
from stream_odml.store.errors import ArtifactCorrupt, NoVersionYet, UnfinishedBackup
from stream_odml.store.lease import read_lease
from stream_odml.store.store import Store
from stream_odml.store.tables import SCHEMA_VERSION
from stream_odml.wording import first_line, some

State = Literal["ok", "warning", "failure"]
RESTORE = "restore the file, or the root, from a backup (`stream-odml backup`)"
CLOCK_BEHIND_S = 60.0
"""Seconds that the newest commit may lie in the future: clocks of hosts differ by less."""


@dataclass(frozen=True)
class Finding:
    """What one check found. `remedy`: what to do, where it is not ok."""

    check: str
    state: State
    detail: str
    remedy: str = ""


def examine_root(root: str, storage_options: dict[str, str] | None = None) -> Iterator[Finding]:
    """Yield the findings of every check of a root. What one of them raises is its finding; the others go on."""
    try:
        store = Store.open(root, storage_options, keep_gallery=False)
    except UnfinishedBackup as error:
        yield Finding("tables", "failure", str(error), "a copy of the root is made by `stream-odml backup`")
        return
    except (OSError, ValueError, RuntimeError) as error:
        yield Finding("tables", "failure", str(error), "correct the path, or restore the root from a backup")
        return
    yield Finding(
        "tables", "ok",
        f"{store.form} form, dimension {store.dim}, {store.commits} commits, stream {store.stream_id}; "
        f"this release reads schema versions up to {SCHEMA_VERSION}",
    )  # fmt: skip
    for check in (_data_files, _artifacts, _canaries, _writer, _clock):
        try:
            yield from check(store)
        except (OSError, ValueError, RuntimeError) as error:
            name = check.__name__.strip("_").replace("_", " ")
            yield Finding(name, "failure", f"cannot be examined: {error}", RESTORE)


def _data_files(store: Store) -> Iterator[Finding]:
    missing = store.missing_files()
    if missing:
        yield Finding("data files", "failure", f"missing: {some(missing, between='; ')}", RESTORE)
    bad, rows = [], 0
    gone = {name.removeprefix("gallery/") for name in missing}
    for path in sorted(store.table("gallery").present - gone):
        try:
            vectors = store.vectors(path)
        except (OSError, ValueError) as error:
            bad.append(f"{path} ({first_line(error)})")
            continue
        rows += len(vectors)
        if not np.isfinite(vectors).all():
            bad.append(f"{path} (vectors that are not finite)")
    if bad:
        yield Finding("data files", "failure", f"cannot be used: {some(bad, between='; ')}", RESTORE)
    if not bad and not missing:
        refused = len(store.quarantine_rows())
        yield Finding("data files", "ok", f"{rows} gallery rows read, all finite; {refused} quarantined rows")


def _artifacts(store: Store) -> Iterator[Finding]:
    kept, bad = {}, []
    for version in store.tree.versions.values():
        needed = version.artifacts if not version.retired else {}
        kept.update({ref.path: (version.version_id, ref) for ref in needed.values()})
    size = 0
    for path, (version_id, ref) in kept.items():
        try:
            size += len(read_artifact(store.files, ref))
        except (ArtifactCorrupt, OSError) as error:
            bad.append(f"of version {version_id}: {first_line(error)} [{path}]")
    if bad:
        yield Finding(
            "artifacts",
            "failure",
            some(bad, between="; "),
            f"{RESTORE}, or roll back to a version that is whole",
        )
    else:
        yield Finding("artifacts", "ok", f"{len(kept)} files, {size / 1e6:.1f} MB, as they were committed")


def _canaries(store: Store) -> Iterator[Finding]:
    """Check every model that is kept, once for all versions that share it."""
    models: dict[str, str] = {}
    for version in store.tree.versions.values():
        if not version.retired and STUDENT in version.artifacts:
            models[version.artifacts[STUDENT].sha256] = version.version_id
    checked, without = 0, []
    images = [v for v in models.values() if not spec_of(store.artifact(v, STUDENT)).takes_vectors]
    if models and not images:
        yield Finding("canaries", "ok", "a stream of vectors has no model that could differ")
    for version_id in images:
        if CANARIES not in store.tree.get(version_id).artifacts:
            without.append(version_id)
            continue
        try:
            load_model(store, version_id)
            checked += 1
        except CanaryMismatch as mismatch:
            yield Finding(
                "canaries", "failure", str(mismatch),
                "run the stream where its vectors were made, or install the versions of that machine",
            )  # fmt: skip
        except (BadArtifact, ArtifactCorrupt) as error:
            yield Finding("canaries", "failure", f"version {version_id}: {first_line(error)}", RESTORE)
    if without:
        said = f"{len(without)} of {len(images)} models have none, as an earlier release committed them"
        yield Finding("canaries", "warning", said, "start the stream once: the served version gets them")
    if checked:
        yield Finding(
            "canaries", "ok", f"{checked} models give the vectors that they gave when they were stored"
        )


def _writer(store: Store) -> Iterator[Finding]:
    lease = read_lease(store.files)
    if lease is None or not lease.alive():
        yield Finding("writer", "ok", f"no stream runs on this root; {store.epoch} writers so far")
        return
    ahead = lease.wall - time.time()
    if abs(ahead) > lease.lease_s + CLOCK_BEHIND_S:
        yield Finding(
            "writer", "warning", f"the clock of {lease.host.partition('/')[0]} is {ahead:+.0f} s from this one's",
            "synchronise both clocks (NTP): leases between hosts are counted in wall time",
        )  # fmt: skip
    yield Finding("writer", "ok", f"{lease.holder!r} writes (process {lease.pid}, writer {lease.epoch})")


def _clock(store: Store) -> Iterator[Finding]:
    times: list[datetime] = [version.time for version in store.tree.versions.values()]
    times += [move.time for move in store.tree.moves]
    times += [shard.indexed_at or shard.landed_at for shard in store.ledger.shards.values()]
    if not times:
        raise NoVersionYet("nothing was committed yet; start the stream once")
    ahead = max(times).timestamp() - time.time()
    if ahead > CLOCK_BEHIND_S:
        yield Finding(
            "clock", "failure", f"the newest commit lies {ahead:.0f} s in the future",
            "set this machine's clock (NTP), or that of the machine that wrote it",
        )  # fmt: skip
    else:
        yield Finding("clock", "ok", f"the newest commit is {max(0.0, -ahead):.0f} s old")
