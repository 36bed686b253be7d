"""Commands that run a stream, here or as a job of a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from stream_odml.cli.console import say
from stream_odml.cli.options import ConfigFile, out
from stream_odml.ingest.fields import written_out

Address = Annotated[
    str | None, typer.Option(help="Job server of the cluster, http://head:8265; by default RAY_ADDRESS.")
]


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
    weights: Annotated[
        Path | None,
        typer.Option(help="With --source: pretrained weights of a MobileNetV2, a safetensors file."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="With --source: a pretrained model of transformers, by name or folder.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=16, max=512, help="Side of the model's input, in pixels; by default 32, with --weights 96."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of page and API; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[
        int, typer.Option(help="Port of the driver's metrics; 0 picks a free one.")
    ] = 9464,
    seed: Annotated[int, typer.Option(min=0, help="The one seed.")] = 0,
    hold: Annotated[bool, typer.Option(help="After the verdict keep serving until Ctrl-C.")] = False,
) -> None:
    """Run a whole stream on this machine: it needs no data, no GPU and no internet.

    Categories of glyphs, drawn from the fonts that come with matplotlib, land shard by shard; each is searchable
    within seconds and then learnt, while a client keeps asking. A table of recall over stages ends it, beside what the
    same stream gets without learning on, and by fine-tuning alone.

    Examples:  stream-odml demo  ·  stream-odml demo --stages 5 --hold  ·  stream-odml demo --source
    photos/ --weights mobilenetv2.safetensors
    """
    from stream_odml.cli.demo import TASK_CATEGORIES, demo_config, run_demo, source_categories
    from stream_odml.cli.demo_table import doubts

    if (weights or backbone) is not None and source is None:
        raise ValueError(
            "--weights and --backbone go with --source: the glyphs of the demo are learnt from nothing; leave them out"
        )
    if weights is not None and backbone is not None:
        raise ValueError(
            "--weights are of a MobileNetV2, --backbone names another model; give one of the two"
        )
    goal = None if forever else stages
    categories, each = (None, TASK_CATEGORIES) if source is None else source_categories(source, goal)
    for line in doubts(categories, weights or backbone) if categories is not None else ():
        say(out, line, "yellow")
    config = demo_config(root, seed, port, metrics_port, image_size, weights, each, backbone)
    run_demo(config, categories, goal, out, hold)


def run(
    config: ConfigFile,
    takeover: Annotated[bool, typer.Option(help="Replace a run that seems to hold the root.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; overrides cluster.address.")
    ] = None,
    until_idle: Annotated[
        float | None,
        typer.Option(min=0, help="End when nothing has waited or been learnt for so many seconds."),
    ] = None,
    profile: Annotated[
        int,
        typer.Option(min=0, help="Profile so many training steps: Chrome trace and table under the root."),
    ] = 0,
) -> None:
    """Run a stream as a YAML file describes it, until Ctrl-C. The same command goes on where it was.

    Example:  stream-odml run stream.yaml
    """
    from stream_odml.cli.stream_run import run_until
    from stream_odml.config.stream import load_config

    overrides: dict[str, Any] = {} if address is None else {"cluster": {"address": address}}
    if profile:
        overrides["observe"] = {"profile_steps": profile}
    run_until(load_config(config, overrides), takeover, until_idle, out)


def submit(
    config: ConfigFile,
    address: Address = None,
    job_id: Annotated[str | None, typer.Option(help="Id of the job; by default a new one.")] = None,
    until_idle: Annotated[
        float | None, typer.Option(min=0, help="End the job when nothing has waited for so many seconds.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log and end with the job's exit code.")] = True,
) -> None:
    """Submit a stream as a job of a running Ray cluster. Submitting again resumes it.

    Example:  stream-odml submit stream.yaml --address http://head:8265
    """
    from stream_odml.cluster import jobs

    client, job = jobs.submit(config, address, until_idle, job_id)
    say(out, f"submitted {job}")
    if not follow:
        return
    try:
        code = jobs.follow(client, job, _show_log)
    except KeyboardInterrupt:
        say(out, f"\n{job} goes on; end it with `stream-odml stop {job}`")
        raise
    raise typer.Exit(code)


def _show_log(text: str) -> None:
    """Print a piece of a job's log: its colours go, whatever else steers a terminal is written out."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.replace("\r\n", "\n"))
    print(written_out(plain, keep="\n\t"), end="", flush=True)


def stop(
    job_id: Annotated[str, typer.Argument(help="Id that `submit` printed.")], address: Address = None
) -> None:
    """Stop a submitted stream; what it has committed stays, and submitting again goes on from there.

    Example:  stream-odml stop raysubmit_ab12 --address http://head:8265
    """
    from stream_odml.cluster import jobs

    say(out, f"{job_id} is {jobs.stop(jobs.connect(address), job_id).value.lower()}")
