"""What the command line does with a stream root, whether or not its stream runs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal

from pyarrow.fs import FileType

from stream_odml.cli.versions_table import held_out_lines
from stream_odml.client import Client, ClientError, ServiceError, ServiceUnreachable
from stream_odml.cluster.exposure import is_loopback
from stream_odml.config.masking import masked_text
from stream_odml.pipeline.erasure_request import find_subject
from stream_odml.pipeline.figures import gallery_counts, stream_figures
from stream_odml.pipeline.pushed import drop_half_written, move_back, pushed_elsewhere
from stream_odml.pipeline.stage_folders import default_cache_root, keep_only
from stream_odml.pipeline.stages import relearn
from stream_odml.storage.files import SMALL_FILE, open_files
from stream_odml.storage.process import is_alive
from stream_odml.storage.reading import is_remote, local_path, s3_filesystem, s3_path
from stream_odml.store.erasure import forget_in_banks
from stream_odml.store.layout import LANDED, PUSH
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums
from stream_odml.store.writer import Writer

ENDPOINTS = "endpoints.json"
MISSING = (
    "put these files back under the root, or restore it from a backup; a running stream goes on by itself within "
    "seconds. Until then their rows are not found, and tasks that need them wait"
)
NOTHING_LEFT = "what had this name was erased or replaced before, under other names or by an earlier request"
YOUNG_S = 120.0
"""Age of a request to erase up to which a running stream may not have come to delete everything yet."""
RELEARN_WITHOUT = " (its task was skipped: `relearn` would do without what is in it)"
TOKEN_REMEDY = "give the service's token with --token, or in the environment as STREAM_ODML_TOKEN"


def noted_url(root: str, token: str | None) -> str | None:
    """Return the address that the root's running stream noted, or None. Raises ValueError where `token` would go to
    another machine: whoever can write to the root could name any."""
    url = _noted_url(root)
    if url is None or token is None or _is_this_machine(url):
        return url
    raise ValueError(
        f"{root} says that its service is at {url!r}, which is not this machine; the token is not sent to an address "
        f"out of a file: if it is yours, name it with --url {url!r}"
    )


def _noted_url(root: str) -> str | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        noted = json.loads(open_files(root).read(ENDPOINTS, SMALL_FILE))
        # A killed run could not withdraw it: believe it of this machine only while its process lives.
        gone = noted["host"] == platform.node() and not is_alive(int(noted["pid"]))
        return None if gone or not _is_web_address(noted["service"]) else noted["service"]
    return None


def _is_web_address(url: str) -> bool:
    """Return whether it is no more than scheme, host and port: a path, a name or a password in it is none of ours."""
    import httpx

    try:
        seen = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    plain = str(seen).rstrip("/") == f"{seen.scheme}://{seen.netloc.decode()}"
    return seen.scheme in ("http", "https") and bool(seen.host) and plain and not seen.userinfo


def _is_this_machine(url: str) -> bool:
    import httpx

    return is_loopback(httpx.URL(url).host)  # as the client itself reads it


@contextlib.contextmanager
def asking(root: str | None, url: str | None, token: str | None, retries: int = 4) -> Iterator[Client | None]:
    """Yield a client for a command that takes `--url` and `--token`; None where no stream runs on the root. Where
    another token is wanted, the error says how to give it. Raises ValueError as `noted_url`."""
    address = url or (None if root is None else noted_url(root, token))
    if address is None:
        yield None
        return
    if "://" not in address:
        raise ValueError(f"{address!r} is no address of a service; write http://{address}")
    stream = None if root is None else Store.id_of(root)
    try:
        with Client(address, token=token, stream=stream, retries=retries) as client:
            yield client
    except ServiceError as error:
        if error.status not in (401, 403):
            raise
        raise ServiceError(error.status, error.error, error.detail, TOKEN_REMEDY) from error


def latency_of(root: str, url: str | None, token: str | None) -> dict[str, float]:
    """Return what a replica of the running service tells of its latency, in ms; empty when none answers. Raises
    ServiceError when the service refuses."""
    from stream_odml.cli.report_data import service_latency

    with contextlib.suppress(ServiceUnreachable), _looking(root, url, token) as client:
        return service_latency(client.metrics()) if client is not None else {}
    return {}


def _said_by_service(root: str, token: str | None) -> dict[str, Any]:
    """Return the status as the running service tells it; empty where none answers."""
    with contextlib.suppress(ClientError), _looking(root, None, token) as client:
        return client.status() if client is not None else {}
    return {}


def _looking(root: str, url: str | None, token: str | None) -> AbstractContextManager[Client | None]:
    """Ask as `asking` does, once, and without the token where the root names another machine."""
    address = url or _noted_url(root)
    own = token if url is not None or (address is not None and _is_this_machine(address)) else None
    return asking(root, address, own, retries=0)


def root_status(root: str, token: str | None = None) -> dict[str, Any]:
    """Return how the stream stands, from its tables: head, counts by state, queues, what each open thing waits for; and
    what a running one says is wrong. It tells of the gallery's files that are gone, and reads none then."""
    store = Store.open(root, keep_gallery=False)
    figures = stream_figures(store, store.epoch)
    open_task = store.ledger.open_task
    due = store.ledger.due_tasks(store.tree.learnt())
    missing, said = store.missing_files(), _said_by_service(root, token)
    problem = (said.get("driver") or {}).get("problem")
    return {
        "root": masked_text(store.uri),
        "head": figures.head or None,
        **({"missing_files": missing, "remedy": MISSING} if missing else {}),
        "service": _noted_url(root),
        "problem": masked_text(problem) if problem else None,
        "shards": dict(figures.shards),
        "manifests": sum(shard.format == "task" for shard in store.ledger.shards.values()),
        "images": figures.as_status()["images"],
        "classes": figures.classes,
        "gallery": _gallery(store, said, missing),
        "quarantined": dict(figures.in_quarantine),
        "waits_to_be_indexed": [shard.name for shard in store.ledger.landed.values()][:20],
        "open_task": {
            "task": open_task.task_id,
            "shards": len(open_task.shards),
            "images": open_task.rows,
            "classes": len(open_task.classes),
        },
        "waits_to_be_learnt": [
            {"task": t.task_id, "name": t.detail.get("name"), "closed": t.reason, "refused": t.refusals}
            for t in due
        ],
        "not_learnt": [dict(task) for task in figures.not_learnt],
        "set_aside": {
            s.name: s.problem and masked_text(s.problem) for s in store.ledger.in_state("set_aside")
        },
        "held_out_set": figures.held_out_set,
        "held_out_changed": held_out_lines(store)[-1:],
        "recall_at_1": {"/".join(key): value for key, value in figures.recall_at_1.items()},
        "forgetting": figures.forgetting,
    }


def _gallery(store: Store, said: Mapping[str, Any], missing: Sequence[str]) -> dict[str, int] | None:
    """Return items and classes that can be found now, as a running service says or as the gallery holds them."""
    if {"items", "classes"} <= said.keys():
        return {name: int(said[name]) for name in ("items", "classes")}
    return None if missing or not store.tree.moves else gallery_counts(store)


def roll_back(root: str, version_id: str, relearn: bool, url: str | None, token: str | None) -> str:
    """Move the head through the running service, or by this process when no stream runs on the root. Raises ValueError
    for no name, UnknownVersion."""
    if not version_id:
        raise ValueError("no version is named; `stream-odml versions` lists them")
    store = Store.open(root, keep_gallery=False)
    with asking(root, url, token) as client:
        if client is not None:
            client.rollback(version_id, relearn=relearn)
    version_id = store.tree.named(version_id)
    again = sorted(store.tree.learnt() - store.tree.learnt(version_id)) if relearn else []
    if client is None:
        with _writer(root) as writer:
            move_back(writer, open_files(f"{root.rstrip('/')}/{PUSH}"), version_id, relearn)
    if not again:
        return f"head is {version_id}"
    when = "now" if client is not None else "when the stream runs again"
    return (
        f"head is {version_id}; {', '.join(again)}, which it has not learnt, is learnt again from it {when}: "
        "--no-relearn leaves that out"
    )


def left_behind(root: str, version_id: str, relearn: bool) -> list[str]:
    """Return a line for each task that the head has learnt and `version_id` has not. Raises UnknownVersion."""
    store = Store.open(root, keep_gallery=False)
    named = store.tree.named(version_id)
    fate = "learnt again" if relearn else "skipped, until `stream-odml relearn` names it"
    lines = []
    lost = store.tree.learnt() - store.tree.learnt(named)
    for task in sorted(
        (t for t in store.ledger.tasks.values() if t.task_id in lost), key=lambda t: t.task_id
    ):
        classes = {name for shard in task.shard_ids for name in store.ledger.shards[shard].classes}
        lines.append(f"{task.task_id} ({len(classes)} classes, {task.images} images) would be {fate}")
    return [f"head {store.tree.head} would become {named}", *lines]


def relearn_task(root: str, task: str, anyway: bool, url: str | None, token: str | None) -> str:
    """Take a refused or skipped task back, through the running service, or by this process when no stream runs."""
    if not task:
        raise ValueError("no task is named; `stream-odml status` lists those that were refused or skipped")
    price = ", and is published whatever the gate finds" if anyway else ""
    with asking(root, url, token) as client:
        if client is not None:
            client.relearn(task, anyway)
            return f"{task} is learnt once the tasks that wait are{price}"
    with _writer(root) as writer:
        relearn(writer, task, anyway)
    return f"{task} is learnt when the stream runs again{price}"


def covered_by(root: str, kind: str, name: str) -> str:
    """Return what a request to forget covers, in words. Raises UnknownSubject with the nearest names."""
    subject = find_subject(Store.open(root, keep_gallery=False), kind, name)
    left = f"; {NOTHING_LEFT}" if not subject.items else ""
    return f"{kind} {subject.name}: {_items(subject.items)} would be hidden at once and deleted{left}"


def forget_name(
    root: str,
    kind: Literal["class", "item", "shard"],
    name: str,
    url: str | None,
    token: str | None,
    inbox_at: str | None,
) -> str:
    """Forget through the running service, or by this process when no stream runs on the root. Then `inbox_at` names
    the folder of pushed images, where that lies elsewhere. Raises ValueError for such a folder that is not named;
    UnknownSubject, or ServiceError with status 404, for a name that covers nothing."""
    with asking(root, url, token) as client:
        if client is not None:
            forget = {"class": client.delete_class, "item": client.delete, "shard": client.delete_shard}
            answer = forget[kind](name)
            what = _named(kind, answer["forgotten"], answer["items"])
            return f"forgot {what}: hidden now, deleted within a minute; --verify shows what is left"
    with _writer(root) as writer:
        pushed = _pushed_elsewhere(writer.store, root, inbox_at)
        subject = find_subject(writer.store, kind, name)
        writer.forget(subject.kind, subject.name, subject.items)
        forget_in_banks(writer)  # before their vectors are deleted, and so are the sums
        forget_in_sums(writer)
        writer.maintain(MaintenancePolicy(retention=timedelta(0), orphan_age=timedelta(0)))
        # Made again from the shards when they are needed.
        keep_only(default_cache_root(root, writer.store.stream_id), None)
    for place in (*(f"{root.rstrip('/')}/{folder}" for folder in LANDED), *pushed):
        drop_half_written(place)
    what = _named(kind, subject.name, subject.items)
    return f"forgot {what}: rows, statistics and pixels are deleted"


def _pushed_elsewhere(store: Store, root: str, named: str | None) -> list[str]:
    """Return folders outside the root that hold pushed images. Raises ValueError for one that the user has not named:
    a ledger is data, and could name any folder."""
    known, places = _inboxes(root, named), pushed_elsewhere(store)
    missing = [place for place in places if _real(place) not in known]
    if missing:
        raise ValueError(
            f"images were pushed to {', '.join(missing)} (service.push_dir), outside the stream root, so nothing is "
            f"forgotten yet; name that folder with --inbox-at {shlex.quote(missing[0])}, or start the stream and ask it"
        )
    return places


def _real(place: str) -> str:
    return place.rstrip("/") if is_remote(place) else os.path.realpath(local_path(place))


def _named(kind: str, name: str, items: int) -> str:
    return f"{kind} {name}, {_items(items)}{'' if items else f' ({NOTHING_LEFT})'}"


def _items(count: int) -> str:
    return f"{count} items" if count != 1 else "1 item"


def verify_forgotten(
    root: str, kind: str, name: str, inbox: bool, inbox_at: str | None = None, dry_run: bool = False
) -> tuple[list[str], bool]:
    """Return lines that say what is left of a forgotten name, and whether nothing is. `inbox`: delete landed copies
    too. A landed shard that a task has still to learn from is kept, and named; one of a skipped task is not needed.
    `dry_run`: none is deleted."""
    from stream_odml.pipeline import erasure_proof as forget_proof

    proof = forget_proof.verify_forgotten(root, kind, name)
    covered = "the request covered " + (
        "it is not known what" if proof.covered is None else _items(proof.covered)
    )
    covered += f" ({NOTHING_LEFT})" if proof.covered == 0 else ""
    lines = [f"{proof.files} files searched under {root}; {covered}"]
    lines += [f"found in {line}" for line in proof.findings]
    left = len(proof.findings)
    if left and proof.asked_s_ago < YOUNG_S:
        lines.append(
            f"asked {proof.asked_s_ago:.0f} s ago; a running stream deletes within a minute: verify again"
        )
    if proof.covered is None:
        left += 1
        lines.append(f"an earlier release took the request and did not note whether any {kind} has this name")
    for uri in proof.inbox:
        kept = " (still to be learnt)" if uri in proof.needed and kind != "shard" else ""
        kept = kept or (" (delete the rows in that table, and vacuum it)" if uri in proof.foreign else "")
        if inbox and not kept and not _lies_in(uri, _inboxes(root, inbox_at)):
            kept = " (in no inbox known here: if it is yours, name its folder with --inbox-at)"
        if inbox and not kept and not dry_run:
            _remove(uri)
            lines.append(f"removed {uri}")
        elif inbox and not kept:
            left += 1
            lines.append(f"would remove {uri}{RELEARN_WITHOUT if uri in proof.skipped else ''}")
        else:
            left += 1
            lines.append(f"landed copy {uri}{kept}")
    lines += [
        f"adopted from {place}, which is not searched: erase it there, too" for place in proof.elsewhere
    ]
    holders = "1 place still holds" if left == 1 else f"{left} places still hold"
    lines.append(forget_proof.STAYS if not left else f"{holders} {kind} {name}")
    return lines, not left


def _inboxes(root: str, named: str | None) -> list[str]:
    """Return the folders whose shards may be deleted: a ledger is data, and could name any file of this machine."""
    place = _real(root)
    known = [
        *(f"{place}/{folder}" for folder in LANDED),
        f"{place}/inbox",
        f"{place.rpartition('/')[0]}/inbox",
    ]
    return known if named is None else [*known, _real(named)]


def _lies_in(uri: str, inboxes: Sequence[str]) -> bool:
    """Return whether `uri` is an entry of one of them; a link on its way leads elsewhere."""
    folder, _, name = (uri if is_remote(uri) else os.fspath(local_path(uri))).rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        return False
    return (folder if is_remote(uri) else os.path.realpath(folder)) in inboxes


def _remove(uri: str) -> None:
    if is_remote(uri):
        store = s3_filesystem(None)
        is_folder = store.get_file_info(s3_path(uri)).type == FileType.Directory
        (store.delete_dir if is_folder else store.delete_file)(s3_path(uri))
        return
    path = local_path(uri)
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def _writer(root: str) -> Iterator[Writer]:
    writer = Writer.claim(root, "command line")
    try:
        yield writer
    finally:
        writer.release()
