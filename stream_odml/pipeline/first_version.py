"""A stream root as its configuration describes it: made with the initial model, or checked against it.

Protects: every stored vector of a root came out of one architecture. Torch is loaded only where a model is built.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from stream_odml.config.masking import masked_text
from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.ingest.vectors import MAX_DIM
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.given_vectors import identity_trunk, spec_of
from stream_odml.learn.lift import Lift
from stream_odml.learn.settings import EmbedderSpec, HeadKind
from stream_odml.storage.process import available_bytes
from stream_odml.storage.reading import is_remote, local_path
from stream_odml.store.artifacts import CANARIES, HEAD, STUDENT, SUMS
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store
from stream_odml.store.table import RootForm
from stream_odml.store.tables import Form
from stream_odml.store.version_metrics import VersionMetrics
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import Writer

log = logging.getLogger(__name__)
MATRICES_AT_ONCE = 9
"""Matrices of float64, as large as the one of the sums, that are in memory at once when a head is solved: of vectors of
3,000 and of 5,000 values a process took 9.9 more at its peak."""


def open_root(config: StreamConfig, takeover: bool = False) -> StreamConfig:
    """Make the stream root that a configuration describes, or check the one that is there. Raises ConfigError,
    ValueError, RootBusy. Safe to repeat. Return the configuration with the head that the root was made with."""
    config, writer = claim_root(config, root_there(config), f"stream {config.name}", takeover)
    writer.release()
    return config


def root_there(config: StreamConfig) -> Store | None:
    """Open the stream root of a configuration; None where there is none. Raises ConfigError where a file is in its
    place, or on the way to it."""
    check_place(config.root)
    with contextlib.suppress(NotAStreamRoot):
        return Store.open(config.root, config.storage_options, keep_gallery=False)
    return None


def check_place(root: str) -> None:
    """Raise ConfigError where a stream root, or a folder on its way, is a file; an object store is not asked."""
    if not is_remote(root) and not (above := nearest_there(local_path(root))).is_dir():
        raise ConfigError(f"{root} cannot be made: {above} is a file; choose another folder")


def check_length(config: StreamConfig, dim: int) -> None:
    """Raise ConfigError where vectors of a new gallery would be longer than can be landed, or than there is memory for
    the sums and the head over them."""
    if dim > MAX_DIM:
        raise ConfigError(
            f"vectors of {dim:,} values cannot be taken, at most {MAX_DIM:,}; shorten them, for example by PCA"
        )
    lift = config.model.lift_of(dim) if config.solves_head else 0
    wanted, there = MATRICES_AT_ONCE * 8 * (dim + lift) ** 2, available_bytes()
    if config.solves_head and there is not None and wanted > there:
        raise ConfigError(
            f"a head solved over vectors of {dim:,} values{f' and a lift of {lift:,}' if lift else ''} needs about "
            f"{wanted / 2**30:.1f} GiB of memory, as the square of their length, and {there / 2**30:.1f} GiB is "
            f"available; {'lower model.lift, ' if lift else ''}shorten the vectors, for example by PCA, or take a "
            "machine with more memory"
        )


def nearest_there(path: Path) -> Path:
    """Return the nearest folder (or file) on the way to `path` that is there."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if os.path.lexists(one))


def claim_root(
    config: StreamConfig, there: Store | None, holder: str, takeover: bool = False, dim: int | None = None
) -> tuple[StreamConfig, Writer]:
    """Do as `open_root` does with the root that `root_there` found, and stay its writer.

    `dim`: the length of what a new gallery stores, where it is known.
    """
    if there is not None:
        config = as_made(config, there)
    form: Form = "exact" if config.solves_head else "embedding"
    dim, codes = dim or stored_dim(config, there), config.store.codes
    if there is None:
        check_length(config, dim)
        options = config.storage_options
        there = Store.create(config.root, dim, options, form=form, codes=codes, keep_gallery=False)
    else:
        there.check_form(RootForm(dim, form, codes))
    writer = Writer.claim(there, holder, takeover, config.store.lease_s)
    try:
        if writer.store.tree.root is None:
            writer.commit_root(*first_version(config, writer.store.dim))
        else:
            check_model(config, writer.store)
            if not config.model.takes_vectors:  # else there is no model that could differ
                from stream_odml.models.loading import check_at_start

                check_at_start(writer, config.model, config.seed)
            _check_held_out(config, writer.store)
    except BaseException:  # of an interrupt too: else nobody may write until the lease runs out
        writer.release()
        raise
    return config, writer


def as_made(config: StreamConfig, store: Store) -> StreamConfig:
    """Return the configuration for a root that exists: one that stores embeddings has a head of its own, `linear` or
    `none`, and goes on with it where a new root would get one that is solved. Raises ConfigError where the
    configuration asks for what only stored features allow."""
    if store.form == "exact" or not config.solves_head or config.model.takes_vectors:
        return config
    for name, value, needs in (
        ("store.features", config.store.features, "exact"),
        ("learning.trunk", config.learning.trunk, "frozen"),
    ):
        if value == needs:
            raise ConfigError(
                f"{name}: {value}, but the stream root {config.root} stores embeddings, of which no head can be "
                "solved; leave it out, or start a second stream with a new root on the same inbox"
            )
    head: HeadKind = "linear"
    if store.tree.root is not None:
        head = spec_of(store.artifact(store.tree.head, STUDENT)).head
    log.info(
        "the stream root %s stores embeddings of a %s head, and goes on so; a head that is solved needs a new root "
        "on the same inbox",
        masked_text(config.root),
        head,
    )
    method = "distilled" if config.method == "ours" else config.method
    model = replace(config.model, head=head, lift=None)
    return config.model_copy(update={"method": method, "model": model})


def stored_dim(config: StreamConfig, there: Store | None) -> int:
    """Return the length of what the gallery stores; of a trunk's features it is known once the trunk was built."""
    if not config.solves_head:
        return config.model.dim
    if there is not None:
        return there.dim
    if config.model.takes_vectors and not config.model.input_dim:
        raise ConfigError(
            "model.backbone: none on a new stream root; set model.input_dim to the length of your vectors, or begin "
            "with `stream-odml adopt`"
        )
    if config.model.takes_vectors:
        return config.model.input_dim
    from stream_odml.learn.embedder import build_embedder

    return build_embedder(config.model, config.seed).out_dim


def first_version(config: StreamConfig, dim: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return artifacts and metrics of the initial model; under a discriminant head, with a head solved of nothing.
    `dim`: the length of what the gallery stores."""
    artifacts = _first_model(config.model, config.seed, dim)
    if not config.solves_head:
        return artifacts, {}
    sums = ClassSums.empty(Lift(dim, config.model.lift_of(dim), config.seed))
    head = solve_head(sums, HeadSettings(dim=config.model.dim))
    return {**artifacts, HEAD: head.to_bytes(), SUMS: sums.to_bytes()}, {SUMS_SEQ: -1}


def _first_model(spec: EmbedderSpec, seed: int, dim: int) -> dict[str, bytes]:
    if spec.takes_vectors:
        return {STUDENT: identity_trunk(replace(spec, input_dim=dim))}
    from stream_odml.learn.embedder import build_embedder, embedder_to_bytes
    from stream_odml.models.canaries import canaries_of

    student = embedder_to_bytes(build_embedder(spec, seed))
    return {STUDENT: student, CANARIES: canaries_of(student)}


def _check_held_out(config: StreamConfig, store: Store) -> None:
    """Say where figures will be of other images than those of the version that serves."""
    metrics = VersionMetrics.read(store.tree.get(store.tree.head).metrics)
    if metrics.held_out_set not in (None, config.held_out_set):
        log.warning(
            "version %s was measured on the held-out set %s, and the next will be on %s, as `evaluation` or `seed` is "
            "another: figures of before and after do not compare, and what is stored stays held out, or not, as it was",
            store.tree.head,
            metrics.held_out_set,
            config.held_out_set,
        )


def check_model(config: StreamConfig, store: Store) -> None:
    """Check that the architecture is the one that the root was made with: every stored vector came out of it."""
    made = spec_of(store.artifact(store.tree.head, STUDENT))
    names = ["backbone", "image_size", "pooling", "head", "normalisation"]
    if config.model.takes_vectors and made.takes_vectors:
        names = ["input_dim"] if config.model.input_dim else []
    was = {n: getattr(made, n) for n in names}
    sums = store.sums_of(store.tree.head)
    if sums is not None and config.model.lift is not None:  # without one the root goes on with its own
        was["lift"] = sums.lift.width
    differ = [n for n in was if was[n] != getattr(config.model, n)]
    if differ:
        says = ", ".join(f"{n} {was[n]!r} (asked for {getattr(config.model, n)!r})" for n in differ)
        raise ConfigError(
            f"the stream root {config.root} was made with {says}; set `model` back, "
            "or start a second stream with a new root on the same inbox"
        )
