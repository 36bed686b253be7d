"""The command `run`: a stream until it is interrupted, or until it has nothing more to do."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.console import Console

from stream_odml.cli.console import StreamView, say, waiting
from stream_odml.cli.versions_table import say_versions
from stream_odml.cluster.ray_compat import dead_head
from stream_odml.cluster.runtime import HeadDied, WallClock
from stream_odml.cluster.session import Session, run_stream
from stream_odml.config.stream import StreamConfig
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store

DRIVER_GONE_S = 120.0


def run_until(config: StreamConfig, takeover: bool, idle_s: float | None, console: Console) -> None:
    """Run `config` until Ctrl-C, or until nothing has waited or been learnt for `idle_s` seconds."""
    with contextlib.ExitStack() as stack:
        with waiting(console, "starting Ray, driver, trainer and service"):
            session = stack.enter_context(run_stream(config, takeover))
        urls = session.endpoints
        served = f"page {urls.service}/   API {urls.service}/docs   " if urls.service else ""
        say(console, f"{served}metrics {urls.metrics}")
        try:
            _watch(session, idle_s, console)
        except KeyboardInterrupt:
            say(console, "interrupted: ending the stream; the same command goes on from here")
        store = Store.open(session.config.root, session.config.storage_options)
        if not store.ledger.shards:
            raise ValueError(
                f"no image has landed in {inbox_path(session.config)}; land some with `stream-odml ingest FOLDER INBOX`"
            )
        say_versions(console, store)


def _watch(session: Session, idle_s: float | None, console: Console) -> None:
    busy_at = answered_at = time.monotonic()
    clock = WallClock()
    with StreamView(console, f"stream {session.config.name}") as view:
        while idle_s is None or time.monotonic() - busy_at < idle_s:
            if dead := dead_head():
                raise HeadDied(f"Ray's {' and '.join(dead)} ended")
            if session.owns_ray:
                clock.check()
            status = session.look()
            if status is not None:
                view.show(status)
                answered_at = time.monotonic()
            if time.monotonic() - answered_at > DRIVER_GONE_S:
                raise RuntimeError(
                    f"the driver has not answered for {DRIVER_GONE_S:.0f} s; start the stream again"
                )
            if status is None or is_busy(status):
                busy_at = time.monotonic()
            time.sleep(0.5)


def is_busy(status: dict[str, Any]) -> bool:
    """Return whether a shard waits to be indexed, a closed task to be learnt, or a stage is in progress."""
    queues = status["queue_shards"]
    return bool(queues.get("index") or queues.get("learn") or status["stage"]["phase"] != "idle")
