"""The driver's way of a topic in one process without Ray: found, ledgered, indexed here, committed; to be killed.

As a command, `python -m tests.faults.topic_driver ROOT SERVERS TOPIC`, it takes the root over and works until ended.
"""

from __future__ import annotations

import sys
import time

from stream_odml.cluster import ingestion
from stream_odml.cluster.indexer import Indexer
from stream_odml.cluster.ingestion import Discovery, Ingestion
from stream_odml.config.stream import parse_config
from stream_odml.learn.embedder import build_embedder, embedder_to_bytes
from stream_odml.pipeline.sources import open_sources
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.errors import RootBusy
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.pipeline.test_sources import _Actor, _Here

LEASE_S = 1.0


def main(root: str, servers: str, topic: str) -> None:
    """Work until ended."""
    config = parse_config(
        {
            "root": root,
            "method": "distilled",
            "source": {
                "kind": "kafka",
                "path": topic,
                "poll_s": 0.05,
                "kafka": {
                    "servers": servers,
                    "range_messages": 100,
                    "range_s": 0.2,
                    "options": {"log_level": "0"},
                },
            },
            "model": {"backbone": "conv4", "dim": 8, "image_size": 16},
        }
    )
    setattr(ingestion, "ray", _Here())  # noqa: B010  calls are made here, at once
    Store.create(root, 8, None)
    writer = _claim(root)
    writer.commit_root({STUDENT: embedder_to_bytes(build_embedder(config.model, 0))})
    tier = Ingestion(writer, [_Actor(Indexer(config.model_dump_json()))], config.ingest)
    discovery = Discovery(open_sources(config), writer.store, config.source.poll_s)
    discovery.start()
    while True:
        while (refs := discovery.take()) is not None:
            tier.land(refs)
        tier.dispatch(writer.tree.head)
        tier.gather(0.02)
        tier.commit()


def _claim(root: str) -> Writer:
    while True:
        try:
            return Writer.claim(root, "test", lease_s=LEASE_S)
        except RootBusy:  # its predecessor was killed: its lease runs out
            time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
