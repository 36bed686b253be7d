"""What a stream needs of this machine, looked at before it is started: `config --check`.

Protects: nothing is made, taken or deleted. A folder that is missing is not created, a port is given back at once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from stream_odml.cli.failures import message_of
from stream_odml.cli.stream_root import noted_url
from stream_odml.cluster.placement import check_batch, check_resources, joins_cluster, roles, total
from stream_odml.cluster.runtime import check_port
from stream_odml.config.masking import masked_text
from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.sources import Inspectable, LogSource
from stream_odml.learn.embedder import build_embedder
from stream_odml.learn.metric_losses import build_metric_loss
from stream_odml.pipeline.examining import Finding
from stream_odml.pipeline.first_version import as_made, check_length, check_model, check_place, nearest_there
from stream_odml.pipeline.later_stages import LaterRules
from stream_odml.pipeline.sources import inbox_path, open_sources
from stream_odml.pipeline.stage_journal import open_writers
from stream_odml.storage.process import available_bytes
from stream_odml.storage.reading import is_remote, local_path
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store

ANSWER_S = 20.0
"""Seconds that a store or a source may take to answer."""
MIN_FREE_BYTES = 1 << 30
PROCESS_BYTES = 700 << 20
"""What a process of a stream takes with a small model: `benchmarks/results/ingest.json` has at most 742 MiB."""
T = TypeVar("T")


class Doubt(Exception):
    """Something that may go wrong, but need not."""


def examine(config: StreamConfig) -> Iterator[Finding]:
    """Look at everything that can be looked at without Ray; a finding for each thing, as it is found. A `failure` keeps
    the stream from running, a `warning` may."""
    looks: list[tuple[str, Callable[[StreamConfig], str | None]]] = [
        ("stream root", _root),
        ("source", _source),
        ("model", _model),
        ("training", _training),
        ("trunk", _trunk),
        ("ports", _ports),
        ("stage writers", _writers),
        ("tokens", _tokens),
        ("CPUs", _cpus),
        ("GPUs", _gpus),
        ("memory", _memory),
        ("disk", _disk),
    ]
    for what, look in looks:
        try:
            detail = look(config)
        except Doubt as doubt:
            yield Finding(what, "warning", masked_text(str(doubt)))
        except Exception as error:  # whatever a library raises is what the stream would meet
            yield Finding(what, "failure", masked_text(message_of(error)))
        else:
            if detail is not None:
                yield Finding(what, "ok", masked_text(detail))


def _root(config: StreamConfig) -> str:
    try:
        store = _answered(lambda: Store.open(config.root, config.storage_options, keep_gallery=False))
    except NotAStreamRoot:
        if config.model.input_dim:
            check_length(config, config.model.input_dim)
        return f"{config.root} is made at the first start{_may_make(config.root)}"
    if store.tree.root is None:
        return f"{config.root} is there, without a version yet"
    check_model(as_made(config, store), store)
    return f"{config.root} holds a stream: its head is {store.tree.head}"


def _may_make(place: str) -> str:
    """Raise ConfigError or PermissionError where this user may not make a folder at `place`."""
    if is_remote(place):
        return "; whether it may be written is known then"
    check_place(place)
    above = nearest_there(local_path(place))
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} cannot be made: {above} is not writable; make it writable")
    return ""


def _source(config: StreamConfig) -> str:
    place = inbox_path(config)
    if config.source.kind == "none":
        return "images come over HTTP alone"
    if config.source.kind == "directory" and not is_remote(place):
        folder = local_path(place)
        if not folder.exists():
            return f"{place} is made at the first start{_may_make(place)}"
        return f"{place} can be read: {sum(not e.name.startswith('.') for e in folder.iterdir())} entries"
    with tempfile.TemporaryDirectory() as aside:
        service = config.service.model_copy(update={"push_dir": aside})
        source = open_sources(config.model_copy(update={"service": service}))[0]
    try:
        if isinstance(source, Inspectable):
            return f"{config.source.kind} answers: {_answered(source.inspect)}"
        found = _answered(lambda: source.poll(()))
    finally:
        if isinstance(source, LogSource):
            source.close()
    return f"{config.source.kind} {place} answers: {len(found)} shards at a first look"


def _model(config: StreamConfig) -> str:
    if config.model.takes_vectors:
        return f"no model: the stream takes vectors of {config.model.input_dim or 'the length that its root has'}"
    model = build_embedder(config.model, config.seed)
    start = config.model.weights or (
        "the weights of its name" if config.model.pretrained else "random weights"
    )
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return f"{config.model.backbone} builds: {millions:.1f} million parameters from {start}, output of {model.out_dim}"


def _training(config: StreamConfig) -> str:
    check_batch(config)
    build_metric_loss(config.learning, config.learning.classes_per_batch, config.model.dim, config.seed)
    return f"{config.cluster.workers} workers share batches of {config.learning.classes_per_batch} classes"


def _trunk(config: StreamConfig) -> str | None:
    if not config.solves_head or config.model.takes_vectors:
        return None
    start = "is learnt in the first task" if config.learns_trunk else "stays as its weights are"
    if config.learning.trunk == "auto" and not LaterRules.of(config).may_move:
        return (
            f"{start} and is never moved: `learning.trunk: auto` moves it only where held-out images show that this "
            "serves more, and none are held out. `evaluation.held_out: 0.05` holds out one in twenty"
        )
    return {
        "auto": f"{start}; moved once a tenth of the known classes are new to it, where held-out images show a gain",
        "distilled": f"{start}; moved by later tasks, where that serves more",
        "frozen": f"{start} and is never moved",
    }[config.learning.trunk]


def _ports(config: StreamConfig) -> str:
    wanted = [(config.metrics.host, config.metrics.port, "metrics.port")]
    if config.cluster.serve:
        wanted.insert(0, (config.service.host, config.service.port, "service.port"))
    if (url := noted_url(config.root, None)) is not None:
        return f"not looked at: this stream runs, at {url}"
    for host, port, setting in wanted:
        check_port(host, port, setting)
    return ", ".join(f"{setting} {port or 'any'}" for _, port, setting in wanted) + " free"


def _writers(config: StreamConfig) -> str | None:
    asked = [name for name in ("tensorboard", "mlflow") if getattr(config.metrics, name) is not None]
    open_writers(config)
    return f"stages are written for {' and '.join(asked)}" if asked else None


def _tokens(config: StreamConfig) -> str | None:
    token, read_token = config.service.tokens()
    given = [name for name, value in (("token", token), ("read token", read_token)) if value]
    return f"{' and '.join(given)} given" if given else None


def _cpus(config: StreamConfig) -> str:
    wanted = total(roles(config))
    if joins_cluster(config):
        return f"{wanted:g} wanted of the cluster, which is asked at the start"
    there = config.cluster.cpus or float(os.cpu_count() or 1)
    check_resources(roles(config), there)
    return f"{wanted:g} wanted, {there:g} there"


def _gpus(config: StreamConfig) -> str | None:
    wanted = total(roles(config), "GPU")
    if not wanted:
        return None
    if joins_cluster(config):
        return f"{wanted:g} wanted of the cluster, which is asked at the start"
    import torch

    there = torch.cuda.device_count()
    check_resources(roles(config), float(there), "GPU")
    return f"{wanted:g} wanted, {there} there"


def _memory(config: StreamConfig) -> str | None:
    if joins_cluster(config):
        return None
    count = 2 + sum(role.count for role in roles(config) if role.name != "reading")
    wanted, there = count * PROCESS_BYTES, available_bytes()
    if there is None:
        return None
    said = f"{there / 2**30:.1f} GiB available, about {wanted / 2**30:.1f} wanted by {count} processes"
    if wanted > there:
        raise Doubt(f"{said} with a small model; lower cluster.workers, or end what else runs")
    return said


def _disk(config: StreamConfig) -> str | None:
    if is_remote(config.root):
        return None
    place = nearest_there(local_path(config.root))
    free = shutil.disk_usage(place).free
    if free < MIN_FREE_BYTES:
        raise OSError(
            f"{free / 2**30:.2f} GiB free at {place}; a stream needs at least {MIN_FREE_BYTES / 2**30:.0f} GiB, "
            "and room for its images"
        )
    return f"{free / 2**30:.1f} GiB free at {place}"


def _answered(ask: Callable[[], T]) -> T:
    """Return what `ask` returns. Raises TimeoutError where that takes too long: a client may try again for minutes."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # whatever it is, for whoever asked: this thread has nobody to tell
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([answer], ANSWER_S).done:
        raise TimeoutError(f"no answer within {ANSWER_S:.0f} s; check address, credentials and network")
    return answer.result()
