"""The command line: `stream-odml --help`."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from stream_odml import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Streaming continual metric learning: new categories land, are searchable in seconds, are learnt without "
    "forgetting, and are served without a pause.",
)
out = Console()
err = Console(stderr=True)

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; `stream-odml config --example` prints one.")]
Root = Annotated[str, typer.Argument(help="Stream root: the folder or prefix with the stream's tables.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
Url = Annotated[
    str | None, typer.Option(help="Service address; by default the one noted in the stream root.")
]


def main() -> None:
    """Entry point: known errors become one message and exit code 1, an interrupt 130."""
    # Also where a shell started us with SIGINT ignored, as it does in the background of a script.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv or not isinstance(error, _known_errors()):
            raise
        err.print(f"[red]error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)


def _known_errors() -> tuple[type[Exception], ...]:
    from stream_odml.client import ClientError

    return ValueError, OSError, RuntimeError, ClientError


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Log more, and show the trace of an error.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if debug else logging.ERROR,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__, highlight=False)


@app.command()
def demo(
    root: Annotated[Path, typer.Option(help="Stream root; an existing one goes on.")] = Path(
        "stream-odml-demo"
    ),
    stages: Annotated[int, typer.Option(min=1, help="Stages to learn before the verdict.")] = 3,
    forever: Annotated[bool, typer.Option("--forever", help="Go on until Ctrl-C.")] = False,
    source: Annotated[
        Path | None,
        typer.Option(help="Own images: Parquet file, WebDataset tar, or folder of class folders."),
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=16, max=512, help="Side of the model's input, in pixels.")
    ] = 32,
    port: Annotated[int, typer.Option(help="Port of page and API; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[
        int, typer.Option(help="Port of the driver's metrics; 0 picks a free one.")
    ] = 9464,
    seed: Annotated[int, typer.Option(min=0, help="The one seed.")] = 0,
    hold: Annotated[bool, typer.Option(help="After the verdict keep serving until Ctrl-C.")] = False,
) -> None:
    """Run a whole stream on this machine: it needs no data, no GPU and no internet.

    Categories of glyphs, drawn from the fonts that come with matplotlib, land shard by shard; each is searchable
    within seconds and then learnt, while a client keeps asking. A table of recall over stages ends it.

    Examples:  stream-odml demo  ·  stream-odml demo --stages 5 --hold  ·  stream-odml demo --source photos/
    """
    from stream_odml.demo import demo_config, run_demo

    run_demo(
        demo_config(root, seed, port, metrics_port, image_size),
        source,
        None if forever else stages,
        out,
        hold,
    )


@app.command()
def run(
    config: ConfigFile,
    takeover: Annotated[bool, typer.Option(help="Replace a run that seems to hold the root.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; overrides cluster.address.")
    ] = None,
    until_idle: Annotated[
        float | None, typer.Option(help="End when nothing has waited or been learnt for so many seconds.")
    ] = None,
    profile: Annotated[
        int,
        typer.Option(min=0, help="Profile so many training steps: Chrome trace and table under the root."),
    ] = 0,
) -> None:
    """Run a stream as a YAML file describes it, until Ctrl-C. The same command goes on where it was.

    Example:  stream-odml run stream.yaml
    """
    from stream_odml.config import load_config
    from stream_odml.stream_run import run_until

    overrides: dict[str, Any] = {} if address is None else {"cluster": {"address": address}}
    if profile:
        overrides["observe"] = {"profile_steps": profile}
    run_until(load_config(config, overrides), takeover, until_idle, out)


Address = Annotated[
    str | None, typer.Option(help="Job server of the cluster, http://head:8265; by default RAY_ADDRESS.")
]


@app.command()
def submit(
    config: ConfigFile,
    address: Address = None,
    job_id: Annotated[str | None, typer.Option(help="Id of the job; by default a new one.")] = None,
    until_idle: Annotated[
        float | None, typer.Option(help="End the job when nothing has waited for so many seconds.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log and end with the job's exit code.")] = True,
) -> None:
    """Submit a stream as a job of a running Ray cluster. Submitting again resumes it.

    Example:  stream-odml submit stream.yaml --address http://head:8265
    """
    from stream_odml.cluster import jobs

    client, job = jobs.submit(config, address, until_idle, job_id)
    out.print(f"submitted {job}", highlight=False)
    if not follow:
        return
    try:
        code = jobs.follow(client, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        out.print(f"\n{job} goes on; end it with `stream-odml stop {job}`", highlight=False)
        raise
    raise typer.Exit(code)


@app.command()
def stop(
    job_id: Annotated[str, typer.Argument(help="Id that `submit` printed.")], address: Address = None
) -> None:
    """Stop a submitted stream; what it has committed stays, and submitting again goes on from there.

    Example:  stream-odml stop raysubmit_ab12 --address http://head:8265
    """
    from stream_odml.cluster import jobs

    out.print(f"{job_id} is {jobs.stop(jobs.connect(address), job_id).value.lower()}", highlight=False)


@app.command()
def config(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a file with every field.")] = False,
    check: Annotated[
        Path | None, typer.Option(help="Check a file and print it with all defaults, as JSON.")
    ] = None,
) -> None:
    """Describe or check the configuration.

    Examples:  stream-odml config --example > stream.yaml  ·  stream-odml config --check stream.yaml
    """
    from stream_odml.config import example_yaml, load_config, schema_json

    if check is not None:
        print(load_config(check).model_dump_json(indent=2))
    elif schema:
        print(schema_json())
    elif example:
        print(example_yaml(), end="")
    else:
        raise ValueError("say which: --schema, --example, or --check FILE")


@app.command()
def ingest(
    path: Annotated[
        Path, typer.Argument(help="Folder of class folders, Parquet or Arrow file, or WebDataset tar.")
    ],
    inbox: Annotated[str, typer.Argument(help="The stream's inbox: a folder or s3://bucket/prefix.")],
    rows_per_shard: Annotated[
        int, typer.Option(min=1, help="Rows of each shard cut from a Parquet file.")
    ] = 1000,
    task: Annotated[
        str | None, typer.Option(help="Say that these shards are a complete task of this name.")
    ] = None,
) -> None:
    """Land images as shards. Repeating the command lands nothing twice.

    Examples:  stream-odml ingest photos/ stream-root/inbox  ·  stream-odml ingest new.parquet stream-root/inbox
    --task spring
    """
    from stream_odml.ingest import land_path

    shards = []
    for shard in land_path(path, inbox, rows_per_shard, task):
        out.print(f"landed {shard}", highlight=False, soft_wrap=True)
        shards.append(shard)


@app.command()
def query(
    image: Annotated[Path, typer.Argument(help="Image to look for.")],
    root: Annotated[str | None, typer.Option(help="Stream root, to find the service.")] = None,
    url: Url = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=200, help="Neighbours to show.")] = 5,
    token: Annotated[str | None, typer.Option(envvar="STREAM_ODML_TOKEN", help="Bearer token.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the running service for the neighbours of an image.

    Example:  stream-odml query leaf.jpg --root stream-root -k 10
    """
    from stream_odml.client import Client

    with Client(url or _service_of(root), token=token) as client:
        answer = client.search_image(image.read_bytes(), k=k)
    if as_json:
        hits = [{"item_id": h.item_id, "class_name": h.class_name, "score": h.score} for h in answer.hits]
        print(json.dumps({"version": answer.version, "hits": hits}))
        return
    table = Table("score", "class", "item", title=f"version {answer.version}", title_justify="left")
    for hit in answer.hits:
        table.add_row(f"{hit.score:.3f}", hit.class_name, hit.item_id)
    out.print(table)


@app.command()
def status(root: Root, as_json: AsJson = False) -> None:
    """Say how a stream stands, from its tables alone: it need not be running.

    Example:  stream-odml status stream-root --json
    """
    from stream_odml.stream_root import root_status

    report = root_status(root)
    if as_json:
        print(json.dumps(report, indent=2, default=str))
        return
    for key, value in report.items():
        out.print(f"{key:16} {value}", highlight=False, soft_wrap=True)


@app.command()
def versions(
    root: Root,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="FROM TO", help="What changed between two versions, class by class."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the versions from the root to the head, with recall and forgetting; or compare two of them.

    Example:  stream-odml versions stream-root
    Example:  stream-odml versions stream-root --diff v0001-3fa9 head
    """
    from stream_odml.console import diff_table, stage_table
    from stream_odml.gallery.store import Store
    from stream_odml.versions_table import diff_of, stage_rows

    store = Store.open(root)
    if diff is not None:
        changes = diff_of(store, *diff)
        if as_json:
            print(json.dumps(changes, indent=2))
        else:
            out.print(diff_table(changes))
        return
    rows = stage_rows(store)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        out.print(stage_table(rows))


@app.command()
def quarantine(
    root: Root,
    as_json: AsJson = False,
    export: Annotated[
        Path | None, typer.Option(help="Write the refused rows, whole, to this Parquet file, to be mended.")
    ] = None,
) -> None:
    """List the rows that could not be used, each with its reason.

    A retry: export them, mend the columns of the file, and land it as a new shard with `stream-odml ingest`.

    Examples:  stream-odml quarantine stream-root --json  ·  stream-odml quarantine stream-root --export bad.parquet
    """
    from stream_odml.gallery.store import Store

    if export is not None:
        from stream_odml.quarantined import export_rows

        written, gone = export_rows(Store.open(root), export)
        out.print(
            f"{written} rows in {export}; mend them, then `stream-odml ingest {export} INBOX`", soft_wrap=True
        )
        for line in gone:
            out.print(f"not exported: {line}", highlight=False, markup=False, soft_wrap=True)
        return
    rows = Store.open(root).quarantine_rows().to_pylist()
    if as_json:
        print(
            json.dumps([{**r, "first_bytes": r["first_bytes"].hex(), "time": str(r["time"])} for r in rows])
        )
        return
    table = Table("shard", "row", "reason", "detail")
    for row in rows:
        table.add_row(row["shard_id"], str(row["row"]), row["reason"], row["detail"])
    out.print(table)


@app.command()
def report(
    root: Root,
    out_file: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    queries: Annotated[int, typer.Option(min=0, help="Held-out images shown with their neighbours.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Which held-out images.")] = 0,
    url: Url = None,
    token: Annotated[str | None, typer.Option(envvar="STREAM_ODML_TOKEN", help="Bearer token.")] = None,
) -> None:
    """Write one self-contained HTML file: recall, forgetting, drift, latency, quarantine, examples.

    Example:  stream-odml report stream-root --out report.html
    """
    from stream_odml.report import write_report
    from stream_odml.stream_root import latency_of

    data = write_report(root, str(out_file), queries, seed, latency_of(root, url, token))
    out.print(f"wrote {out_file}: {len(data.versions)} stages, {len(data.examples)} examples", soft_wrap=True)


@app.command()
def backup(
    root: Root,
    target: Annotated[str, typer.Argument(help="Empty folder or object-store prefix for the copy.")],
) -> None:
    """Copy a stream root as it is at one instant, while its stream runs. To restore, copy the copy back.

    The inbox is no part of it: keep landed shards until they are learnt.

    Examples:  stream-odml backup stream-root backups/monday  ·  stream-odml backup backups/monday stream-root-2
    """
    from stream_odml.gallery.backup import back_up

    done = back_up(root, target)
    out.print(
        f"{done.files} files, {done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s; head {done.head}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def rollback(
    root: Root,
    version_id: Annotated[str, typer.Argument(help="Version to serve again; `versions` lists them.")],
    relearn: Annotated[bool, typer.Option(help="Learn the tasks of the branch left behind again.")] = True,
    url: Url = None,
    token: Annotated[str | None, typer.Option(envvar="STREAM_ODML_TOKEN", help="Bearer token.")] = None,
) -> None:
    """Serve an earlier (or later) version. No item is lost: stored vectors are mapped.

    Example:  stream-odml rollback stream-root v0002-1a2b3c4d
    """
    from stream_odml.stream_root import roll_back

    out.print(roll_back(root, version_id, relearn, url, token), highlight=False)


@app.command()
def forget(
    root: Root,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Forget every item of this class.")
    ] = None,
    item: Annotated[str | None, typer.Option(help="Forget this item.")] = None,
    shard: Annotated[str | None, typer.Option(help="Forget all of this shard.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Search every file under the root for what was forgotten.")
    ] = False,
    inbox: Annotated[
        bool, typer.Option("--inbox", help="With --verify: delete landed shards that hold it, once learnt.")
    ] = False,
    url: Url = None,
    token: Annotated[str | None, typer.Option(envvar="STREAM_ODML_TOKEN", help="Bearer token.")] = None,
) -> None:
    """Forget a class, an item or a shard: hidden at once, then deleted. `--verify` proves it, exit code 1 if not.

    Examples:  stream-odml forget stream-root --class "sku 4711"  ·  ... --class "sku 4711" --verify --inbox
    """
    from stream_odml.stream_root import forget_name, verify_forgotten

    options: list[tuple[Literal["class", "item", "shard"], str | None]] = [
        ("class", class_name), ("item", item), ("shard", shard)
    ]  # fmt: skip
    given = [(kind, name) for kind, name in options if name is not None]
    if len(given) != 1:
        raise ValueError("say what to forget: one of --class NAME, --item ID, --shard ID")
    kind, name = given[0]
    if not verify:
        out.print(forget_name(root, kind, name, url, token), highlight=False, markup=False, soft_wrap=True)
        return
    lines, gone = verify_forgotten(root, kind, name, inbox)
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if gone else 1)


def _service_of(root: str | None) -> str:
    from stream_odml.stream_root import service_url

    return service_url(root)


if __name__ == "__main__":
    main()
