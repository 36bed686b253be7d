"""Commands that only look: at a stream root at rest, or at its running service."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from stream_odml.cli.console import say, say_findings, say_json, shown
from stream_odml.cli.options import AsJson, Root, Token, Url, out

_HIT = ("item_id", "class_name", "score", "shard", "row", "attributes")
"""What `query --json` tells of a hit."""


def query(
    image: Annotated[Path, typer.Argument(help="Image to look for.")],
    root: Annotated[str | None, typer.Option(help="Stream root, to find the service.")] = None,
    url: Url = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=200, help="Neighbours to show.")] = 5,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Ask the running service for the neighbours of an image.

    Example:  stream-odml query leaf.jpg --root stream-root -k 10
    """
    from stream_odml.cli.stream_root import asking

    if not image.is_file():
        seen = "is no file" if image.exists() else "is not there"
        raise ValueError(f"{image} {seen}; name an image file")
    if not root and not url:
        raise ValueError("name the service: --url http://host:port, or --root with the stream root")
    with asking(root, url, token) as client:
        if client is None:
            raise ValueError(f"no stream runs on {root}; start one with `stream-odml run`, or give --url")
        answer = client.search_image(image.read_bytes(), k=k)
    if as_json:
        hits = [{name: getattr(hit, name) for name in _HIT} for hit in answer.hits]
        say_json({"version": answer.version, "hits": hits})
        return
    title = shown(f"version {answer.version}")
    table = Table("score", "class", "item", "file", title=title, title_justify="left")
    for hit in answer.hits:
        said = (hit.class_name, hit.item_id, hit.attributes.get("path", ""))
        table.add_row(f"{hit.score:.3f}", *map(shown, said))
    out.print(table)


def status(root: Root, token: Token = None, as_json: AsJson = False) -> None:
    """Say how a stream stands, what needs attention first, from its tables: it need not be running. One that runs is
    asked what is wrong.

    Example:  stream-odml status stream-root --json
    """
    from stream_odml.cli.status_text import status_text
    from stream_odml.cli.stream_root import root_status
    from stream_odml.observe.plain import plain

    report = root_status(root, token)
    if as_json:
        say_json(plain(report), indent=2)
        return
    out.print(status_text(report, root), soft_wrap=True)


def versions(
    root: Root,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="FROM TO", help="What changed between two versions, class by class."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the versions from the root to the head, with recall and forgetting; or compare two of them.

    Below them: the tasks that were refused or skipped, why, and what to do.

    Examples:  stream-odml versions stream-root  ·  stream-odml versions stream-root --diff v0001-3fa9 head
    """
    from stream_odml.cli.console import diff_table
    from stream_odml.cli.versions_table import diff_of, say_versions, stage_rows
    from stream_odml.observe.plain import plain
    from stream_odml.store.store import Store

    store = Store.open(root)
    if diff is not None:
        changes = diff_of(store, *diff)
        if as_json:
            say_json(plain(changes), indent=2)
        else:
            out.print(diff_table(changes))
        return
    if as_json:
        say_json(plain(stage_rows(store)), indent=2)
    else:
        say_versions(out, store)


def quarantine(
    root: Root,
    as_json: AsJson = False,
    export: Annotated[
        Path | None, typer.Option(help="Write the refused rows, whole, to this Parquet file, to be fixed.")
    ] = None,
) -> None:
    """List the rows that could not be used, each with its reason.

    A retry: export them, fix the columns of the file, and land it as a new shard with `stream-odml ingest`.

    Examples:  stream-odml quarantine stream-root --json  ·  stream-odml quarantine stream-root --export bad.parquet
    """
    from stream_odml.ingest.reasons import REMEDIES
    from stream_odml.store.store import Store

    if export is not None:
        from stream_odml.cli.quarantined import export_rows

        written, gone = export_rows(Store.open(root), export)
        if written:
            say(out, f"{written} rows in {export}; fix them, then `stream-odml ingest {export} INBOX`")
        else:
            say(out, f"there is no row to export; {export} was not written")
        for line in gone:
            say(out, f"not exported: {line}")
        return
    rows = Store.open(root).quarantine_rows().to_pylist()
    if as_json:
        say_json([{**r, "first_bytes": r["first_bytes"].hex(), "time": str(r["time"])} for r in rows])
        return
    table = Table("shard", "row", "reason", "detail")
    for row in rows:
        table.add_row(shown(row["shard_id"]), str(row["row"]), shown(row["reason"]), shown(row["detail"]))
    out.print(table)
    for reason, count in sorted(Counter(row["reason"] for row in rows).items()):
        say(out, f"{count} {reason}: {REMEDIES.get(reason, 'refused by another release')}")


def report(
    root: Root,
    out_file: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    queries: Annotated[int, typer.Option(min=0, help="Held-out images shown with their neighbours.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Which held-out images.")] = 0,
    url: Url = None,
    token: Token = None,
) -> None:
    """Write one self-contained HTML file: recall, forgetting, drift, latency, quarantine, examples.

    Example:  stream-odml report stream-root --out report.html
    """
    from stream_odml.cli.report import write_report
    from stream_odml.cli.stream_root import latency_of
    from stream_odml.client import ServiceError

    try:
        latency = latency_of(root, url, token)
    except ServiceError as error:
        latency = {}
        say(out, f"without the service's latency: {error.detail}; {error.remedy}", "yellow")
    data = write_report(root, str(out_file), queries, seed, latency)
    say(out, f"wrote {out_file}: {len(data.versions)} stages, {len(data.examples)} examples")


def doctor(
    root: Root,
    config: Annotated[
        Path | None, typer.Option(help="The stream's YAML file, for its ports and storage options.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine a stream root and this machine, changing nothing; exit code 1 if something keeps a stream from running.

    Reads every file of the root: tables, gallery, artifacts by their hashes, and embeds the canaries of every kept
    model again. Of the machine: disk, shared memory, ports, clock, installed versions.

    Examples:  stream-odml doctor stream-root  ·  stream-odml doctor stream-root --config stream.yaml --json
    """
    from stream_odml.cli.machine import examine
    from stream_odml.config.stream import load_config

    settings = None if config is None else load_config(config)
    findings = say_findings(out, examine(root, settings), as_json)
    counts = Counter(finding.state for finding in findings)
    if as_json:
        say_json({"ok": not counts["failure"], "findings": [asdict(one) for one in findings]}, indent=2)
    else:
        say(out, f"{len(findings)} checks: {counts['failure']} failures, {counts['warning']} warnings")
    raise typer.Exit(1 if counts["failure"] else 0)
