"""The gallery and its model, taken out as files that need nothing of ours: tables, an index, a model with its card.

Protects: every file appears whole; the vectors of all files are of one snapshot, and so is the model. `export.json`
names what belongs to it, and no file of an earlier export lies beside that; a file that no export wrote stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.places import open_target
from stream_odml.exchange.rows import Gallery
from stream_odml.exchange.syncing import sync
from stream_odml.exchange.urls import check_outside
from stream_odml.ingest.served_vectors import KEY
from stream_odml.learn.given_vectors import spec_of
from stream_odml.storage.atomic import drop_strays, write_whole
from stream_odml.storage.outside import is_root
from stream_odml.storage.reading import scheme_of
from stream_odml.storage.regular import checked_path
from stream_odml.store.artifacts import HEAD, STUDENT
from stream_odml.store.version_metrics import VersionMetrics

FORMATS = ("parquet", "faiss", "npz", "model", "onnx")


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    to: str
    version: str
    items: int
    dim: int
    files: Sequence[str] = ()
    seconds: float = 0.0
    left_out: Sequence[str] = ()
    """Formats that nobody named, and whose libraries are not installed."""


MARK = "export.json"
"""Names the files of an export, of what they are, and (`ours`) what an unfinished one may have left."""
_CARD = "model/README.md"
_FILES = {
    "parquet": ("items.parquet",),
    "faiss": ("items.faiss", "items.ids.parquet"),
    "npz": ("items.npz",),
    "model": ("model/trunk.safetensors", "model/head.safetensors", _CARD),
    "onnx": ("model/model.onnx",),
}


def export(
    root: str,
    to: str,
    *,
    formats: str | Sequence[str] | None = None,
    storage_options: dict[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportReport:
    """Write the gallery in its served version's space to a folder, or into a store (as one run of `sync`).

    `formats` of a folder: some of `FORMATS`, as a list or between commas; by default all, without `onnx` where the
    extra of that name is not installed. Raises ExchangeError.
    """
    began = time.perf_counter()
    if isinstance(formats, str):
        formats = [name.strip() for name in formats.split(",") if name.strip()]
    if not (scheme := scheme_of(to)):
        done = _to_folder(root, to, formats, storage_options, progress)
        return replace(done, seconds=round(time.perf_counter() - began, 3))
    if formats is not None:
        raise ExchangeError(f"formats are of a folder, not of {scheme}://; leave --format out")
    with contextlib.closing(open_target(to)) as target:
        synced = sync(root, target, storage_options=storage_options, progress=progress)
        mark = target.mark()
    return ExportReport(
        target.name, synced.version, synced.items, mark.dim if mark else 0, seconds=synced.seconds
    )


def _to_folder(
    root: str,
    to: str,
    formats: Sequence[str] | None,
    storage_options: dict[str, str] | None,
    progress: Callable[[int, int], None],
) -> ExportReport:
    folder = Path(to)
    has_onnx = all(find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))
    left_out = ("onnx",) if formats is None and not has_onnx else ()
    wanted = [name for name in FORMATS if name not in left_out] if formats is None else formats
    if not wanted:
        raise ExchangeError(f"no format is named; name some of {', '.join(FORMATS)}")
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown:
        raise ExchangeError(f"there is no format {unknown[0]!r}; name some of {', '.join(FORMATS)}")
    checked_path("folder", to)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ExchangeError(f"{folder} is no folder; name a folder, which is made where there is none")
    if is_root(to):
        raise ExchangeError(f"{folder} is a stream root; name a folder of its own")
    check_outside(to)
    check_outside(str((folder / _CARD).parent))
    if not scheme_of(root) and Path(os.path.realpath(root)).is_relative_to(os.path.realpath(to)):
        raise ExchangeError(f"{folder} holds the stream root {root}; name a folder of its own")
    ours = _written(folder)
    known = [name for names in _FILES.values() for name in names]
    theirs = [name for name in known if name not in ours and (folder / name).exists()]
    if theirs:
        raise ExchangeError(f"{folder} holds {theirs[0]}, which no export wrote; name an empty folder")
    gallery = Gallery.load(root, storage_options)
    files: list[str] = []
    try:
        for place in (folder, (folder / _CARD).parent):
            drop_strays(place)
        # While files of two exports lie there, it names none of them.
        _mark(folder, about(gallery), [], known)
        for number, one in enumerate(wanted):
            progress(number, len(wanted))
            files += _WRITERS[one](gallery, folder)
        for name in sorted(ours.difference(files)):
            (folder / name).unlink(missing_ok=True)
        _mark(folder, about(gallery), files, files)
    except OSError as error:
        raise ExchangeError(f"{folder} cannot be written: {error.strerror}; name another folder") from None
    with contextlib.suppress(OSError):
        (folder / "model").rmdir()  # of an earlier export, and empty now
    progress(len(wanted), len(wanted))
    return ExportReport(
        to, gallery.version, len(gallery), gallery.dim, files=(MARK, *files), left_out=left_out
    )


def _written(folder: Path) -> set[str]:
    """Return files that earlier exports wrote to a folder. Raises ExchangeError where that cannot be known."""
    known = {name for names in _FILES.values() for name in names}
    try:
        said = json.loads((folder / MARK).read_bytes())
        # An earlier release named none: all that it may have written was its own.
        return known & set(map(str, said.get("ours", known)))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise ExchangeError(f"{folder / MARK} is none that export wrote; name an empty folder") from None


def _mark(folder: Path, of: dict[str, Any], files: Iterable[str], ours: Iterable[str]) -> None:
    said = {**of, "files": list(files), "ours": sorted(ours)}
    _write(folder, MARK, lambda file: file.write(json.dumps(said).encode()))


def _write(folder: Path, name: str, fill: Callable[[IO[bytes]], object]) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_whole(folder / name, fill, durable=False)
    return name


def _parquet(gallery: Gallery, folder: Path) -> list[str]:
    def fill(file: IO[bytes]) -> None:
        schema = gallery.table(np.arange(0)).schema.with_metadata({KEY: json.dumps(about(gallery))})
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in gallery.blocks():
                writer.write_table(rows.replace_schema_metadata(schema.metadata))

    return [_write(folder, "items.parquet", fill)]


def _faiss(gallery: Gallery, folder: Path) -> list[str]:
    """Return an exact index by inner product, and the ids of its rows in their order."""
    import faiss

    index = faiss.IndexFlatIP(gallery.dim)
    ids = []
    for rows in gallery.blocks():
        index.add(_matrix(rows))
        ids.append(rows.drop_columns(["vector"]))
    table = pa.concat_tables(ids) if ids else gallery.table(np.arange(0)).drop_columns(["vector"])
    table = table.replace_schema_metadata({KEY: json.dumps(about(gallery))})
    data = faiss.serialize_index(index).tobytes()
    return [
        _write(folder, "items.faiss", lambda file: file.write(data)),
        _write(folder, "items.ids.parquet", lambda file: pq.write_table(table, file)),
    ]


def _npz(gallery: Gallery, folder: Path) -> list[str]:
    blocks = list(gallery.blocks()) or [gallery.table(np.arange(0))]
    rows = pa.concat_tables(blocks)
    arrays: dict[str, Any] = {
        name: np.array(rows[name].to_pylist(), str) for name in rows.column_names if name != "vector"
    }
    arrays[KEY] = np.array([json.dumps(about(gallery))])
    vectors = np.concatenate([_matrix(block) for block in blocks])
    return [_write(folder, "items.npz", lambda file: np.savez(file, vector=vectors, **arrays))]


def _matrix(rows: pa.Table) -> Any:
    column = rows["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(rows), column.type.list_size)


def _model(gallery: Gallery, folder: Path) -> list[str]:
    """Return trunk (or embedder) and head as safetensors, with a card that says how they are used."""
    store, version = gallery.store, gallery.version
    written = []
    for name, file in ((STUDENT, "trunk.safetensors"), (HEAD, "head.safetensors")):
        if name in store.tree.get(version).artifacts:
            data = store.artifact(version, name)
            written.append(_write(folder, f"model/{file}", lambda out, data=data: out.write(data)))  # type: ignore[misc]
    card = card_of(gallery).encode()
    return [*written, _write(folder, _CARD, lambda out: out.write(card))]


def _onnx(gallery: Gallery, folder: Path) -> list[str]:
    """Return trunk and head as one ONNX graph, from images (or vectors) to what is compared with the rows."""
    from stream_odml.exchange.onnx_model import onnx_of

    data = onnx_of(gallery)
    return [_write(folder, "model/model.onnx", lambda out: out.write(data))]


def about(gallery: Gallery) -> dict[str, Any]:
    """Return what a reader of exported vectors has to know."""
    return {
        "stream": gallery.store.stream_id,
        "version": gallery.version,
        "sequence": gallery.snapshot.sequence,
        "dim": gallery.dim,
        "layout": gallery.layout,
        "compare": "inner product",
    }


_WRITERS = dict(zip(FORMATS, (_parquet, _faiss, _npz, _model, _onnx), strict=True))


_LAYOUTS = {
    "whole": "The vector of an item is its embedding, of length 1.",
    "known": "The head knows the class of every item: the vector of an item is the known part of its embedding.",
    "shared": "The vector of an item is the known part of its embedding, and behind it the constant that the head adds "
    "for items of unknown classes. A query has 1 behind it.",
    "full": "The vector of an item is its embedding, of which one part is zero (the known part of an item whose class "
    "the head does not know, the other part, scaled, of all others), and behind it the constant that the head adds for "
    "items of unknown classes. A query has both parts, and 1 behind them.",
}


def card_of(gallery: Gallery) -> str:
    """Return the card as Markdown, with the header that model hubs read."""
    store, version = gallery.store, gallery.store.tree.get(gallery.version)
    spec = spec_of(store.artifact(gallery.version, STUDENT))
    metrics = VersionMetrics.read(version.metrics)
    head = gallery.head
    recall = metrics.recall("union", "served")
    takes = (
        f"vectors of {spec.input_dim} float32 values, as the stream took them"
        if spec.takes_vectors
        else f"RGB images of {spec.image_size} x {spec.image_size} pixels, float32 in 0..1, channels first: scaled so "
        f"that the shorter side has {spec.image_size} pixels, then the centre; normalisation is in the model"
    )
    lines = [
        "---",
        "library_name: stream-odml",
        "pipeline_tag: image-feature-extraction",
        "tags: [metric-learning, retrieval, continual-learning]",
        "---",
        f"# {spec.backbone}, version {gallery.version}",
        "",
        f"An embedding model learnt by stream-odml: version `{gallery.version}` of stream `{store.stream_id}`.",
        "",
        "| | |",
        "|---|---|",
        f"| takes | {takes} |",
        f"| gives | vectors of {gallery.dim} values, to be compared by inner product |",
        f"| head | {spec.head}"
        + (f", which knows {len(head.names)} classes |" if head is not None else " |"),
        f"| items exported with it | {len(gallery)} |",
        f"| Recall@1 on held-out items | {'not measured' if recall is None else f'{recall:.3f}'} |",
        "",
        "## How vectors are compared",
        "",
        _LAYOUTS[gallery.layout] + " The inner product of a query and an item is the score of a search.",
        "",
        "Vectors of another version are of another space: never compare them with these.",
        "",
        "## Files",
        "",
        "`trunk.safetensors` holds weights and, in its header, the specification they belong to"
        + ("; `head.safetensors` the head's maps in float64. " if head is not None else ". ")
        + "`model.onnx`, if it was exported, takes the input named `input` and gives `embedding`.",
        "",
    ]
    return "\n".join(lines)
