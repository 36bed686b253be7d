"""Commands that take a gallery over from another store or model, give ours to one, and keep it in step there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stream_odml.cli.console import say, say_json
from stream_odml.cli.options import AsJson, DryRun, Root, out


def adopt(
    source: Annotated[
        str,
        typer.Argument(
            help="Parquet or Arrow file or folder, .npz, .faiss, qdrant://HOST/COLLECTION, "
            "qdrant:///FOLDER/COLLECTION, lancedb:///FOLDER/TABLE, postgresql://HOST/DATABASE?table=NAME."
        ),
    ],
    root: Annotated[str, typer.Option(help="Stream root; made where there is none.")],
    vector: Annotated[str | None, typer.Option(help="Column (payload field) with the vectors.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column with the ids.")] = None,
    class_column: Annotated[
        str | None,
        typer.Option("--class", help="Column with the classes; may be empty in some rows, or in all."),
    ] = None,
    attributes: Annotated[
        str | None, typer.Option(help="Columns that become attributes, separated by commas.")
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(help="Of a FAISS index: .txt, .npy, .json of ids, or .parquet, .csv of columns."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="stream.yaml of the model that made the vectors, which embeds later images."),
    ] = None,
    learn: Annotated[bool, typer.Option(help="Learn what has a class at once, on the CPU.")] = True,
    as_json: AsJson = False,
) -> None:
    """Take over a gallery of another store: its vectors are searchable at once, and what has a class is learnt.

    Without --model the stream takes vectors only. With it, that the vectors are of this model is not checked beyond
    their length, as no image of them is at hand: search for an image whose item you know before you rely on it. The
    same command goes on where it was ended. Rows that cannot be used are quarantined with their reason. Needs a root on
    which no stream runs.

    Examples:  stream-odml adopt vectors.parquet --root shop --class sku  ·  stream-odml adopt
    qdrant://localhost:6333/products --root shop --class category --attributes brand,price
    """
    from stream_odml.config.stream import load_config, parse_config
    from stream_odml.exchange.adopting import adopt as take_over
    from stream_odml.exchange.places import open_source
    from stream_odml.exchange.source import Names

    plain = {"model": {"backbone": "none", "head": "discriminant"}}
    config = parse_config({**plain, "root": root}) if model is None else load_config(model, {"root": root})
    named = tuple(name.strip() for name in (attributes or "").split(",") if name.strip())
    gallery = open_source(source, Names(vector, id_column, class_column, named), ids)
    with progress_bar("adopted", gallery.count) as progress:
        report = take_over(gallery, config, learn=learn, progress=progress)
    _tell(report, as_json, [*adopted_lines(report), *([] if model is None else [UNCHECKED])])


@contextlib.contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar on stderr; yields what is called with how much is done, and of how much."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell(report: Any, as_json: bool, lines: Iterable[str]) -> None:
    if as_json:
        print(json.dumps(asdict(report)), flush=True)
        return
    for line in lines:
        say(out, line)


UNCHECKED = (
    "not checked: whether this model made the vectors; only their length was compared. Search for an image whose item "
    "you know: it has to be the first hit"
)


def adopted_lines(report: Any) -> list[str]:
    """Return what an adoption prints."""
    lines = [
        f"{report.items} items of {report.classes} classes from {report.source}, {report.dim} values each, "
        f"in {report.seconds:.1f} s"
    ]
    if report.before:
        lines.append(f"{report.before} items were taken over before")
    if report.unlabelled:
        lines.append(
            f"{report.unlabelled} have no class: they are searchable, and learnt from once they have one "
            "(PATCH /v1/items/ID, or a table of item_id and class_name in the inbox)"
        )
    if report.norms:
        norms = report.norms
        lines.append(
            f"lengths {norms['min']:.3g} to {norms['max']:.3g}, median {norms['median']:.3g}; "
            f"{norms['unit_share']:.0%} are of length 1"
        )
    if report.note:
        lines.append(report.note)
    if report.duplicate_vectors:
        lines.append(f"{report.duplicate_vectors} vectors are copies of another one")
    lines += [f"{count} quarantined: {reason}" for reason, count in sorted(report.quarantined.items())]
    lines.append(f"learnt by version {report.version}" if report.version else "nothing new was learnt")
    return lines


def export(
    root: Root,
    to: Annotated[
        str,
        typer.Option(
            help="Folder, qdrant://HOST/NAME, qdrant:///FOLDER/NAME, lancedb:///FOLDER/NAME or "
            "postgresql://HOST/DATABASE?table=NAME."
        ),
    ],
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of a folder, some of parquet, faiss, npz, model, onnx, separated by commas; by default all that "
            "this installation can write.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take the gallery and its model out: a row an item, in the space of the served version. The stream may run.

    A folder gets items.parquet, items.faiss with items.ids.parquet, items.npz, and model/ with safetensors, a card and
    ONNX. Vectors are compared by inner product, which is the score of a search.

    Examples:  stream-odml export shop --to out  ·  stream-odml export shop --to lancedb:///data/lance/products
    """
    from stream_odml.exchange.exporting import export as take_out

    with progress_bar("exported") as progress:
        report = take_out(root, to, formats=formats, progress=progress)
    first = f"{report.items} items of version {report.version}, {report.dim} values each, in {report.to}"
    _tell(report, as_json, [first, *(f"  {file}" for file in report.files)])
    for name in () if as_json else report.left_out:
        say(
            out,
            f"without {name}: pip install 'stream-odml[{name}]', or name the formats with --format",
            "yellow",
        )


def sync(
    root: Root,
    to: Annotated[str, typer.Option(help="As for `export`; a folder gets a Parquet file for each bucket.")],
    every: Annotated[
        float | None,
        typer.Option(min=0.1, max=1e8, help="Seconds between two runs, until Ctrl-C; by default one run."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read every row back and write again what differs; exit code 1 where that does not help.",
        ),
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over", help="Replace the gallery of another stream, as after `upgrade` to a new root."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Keep another store in step with the gallery: what differs is written, by id, with the version that made it.

    After a stage the vectors are of another space: they are filled into a table of their own, and shown in one step
    (alias, view, overwritten table), so that no reader sees two spaces. Whatever ends a run, the next one fixes it.

    Examples:  stream-odml sync shop --to qdrant://localhost:6333/products --every 5  ·
    stream-odml sync shop --to copy --verify
    """
    import time

    from stream_odml.exchange.places import open_target
    from stream_odml.exchange.syncing import sync as keep

    with contextlib.closing(open_target(to)) as target:
        while True:
            with progress_bar("written") as progress:
                report = keep(root, target, verify=verify, take_over=take_over, progress=progress)
            if as_json or report.written or report.switched or every is None:
                shown = "; readers see it from now on" if report.switched else ""
                same = "digests are equal" if report.equal else "ROWS DIFFER from what was written"
                if not report.compared:
                    same = "none compared, as nothing has changed and as many are there (--verify compares)"
                line = (
                    f"{report.items} items of version {report.version}, {report.written} written, {same}{shown} "
                    f"({report.seconds:.1f} s)"
                )
                _tell(report, as_json, [line])
            if every is None:
                break
            time.sleep(every)
    raise typer.Exit(0 if report.equal else 1)


def upgrade(
    root: Root,
    model: Annotated[
        Path, typer.Option(help="YAML file of the new stream: its model, and a root of its own.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of class folders with similar images, where none of the stream's are at hand."
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Replace the backbone: take a root over into a new one, each item by a map from the old features to the new ones.

    First says what recall is to be expected: mapped, beside staying and beside embedding every image again. The old
    root is only read, and may be served until the new one suits you; to go back, serve it again. The new stream goes on
    with the same inbox; in the background it embeds the items whose shards can still be read, worst first, and each is
    exact from then on. Repeating the command goes on.

    Examples:  stream-odml upgrade stream-root --model new.yaml --dry-run  ·  stream-odml upgrade stream-root
    --model new.yaml --images photos
    """
    from stream_odml.config.stream import load_config
    from stream_odml.exchange.upgrading import prepare

    config = load_config(model)
    with out.status("embedding the images at hand by both models"):
        prepared = prepare(root, config, images)
    expected = prepared.expected
    if not as_json:
        say(out, f"expected recall@1, of {expected.pairs} images that both models saw:")
        say(out, f"  {expected.staying:.3f}  with the model of now")
        mapped = expected.items - expected.exact
        say(out, f"  {expected.mapped:.3f}  with the new model, {mapped} of {expected.items} items mapped")
        seconds = max(expected.seconds_to_reembed, mapped / (config.store.renew_per_s or float("inf")))
        say(out, f"  {expected.reembedded:.3f}  once all are embedded again ({seconds:.0f} s)")
        say(
            out,
            "the stream does so in the background for items whose shards can still be read, worst first, at most "
            f"{config.store.renew_per_s:g} a second (store.renew_per_s)",
        )
    report = None
    if not dry_run:
        with progress_bar("mapped", prepared.source.count) as progress:
            report = prepared.adopt(progress)
    if as_json:
        say_json({"expected": asdict(expected), "adopted": None if report is None else asdict(report)})
        return
    if report is None:
        say(out, "nothing was made (--dry-run)")
        return
    for line in adopted_lines(report):
        say(out, line)
    say(out, f"start it: stream-odml run {model}")
