"""Transactions: what was aborted is not read and not missed, and their markers hold up no range."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_odml.ingest import kafka_brokers, kafka_retention
from tests.ingest.followed import Followed
from tests.ingest.record_batches import ABORT, COMMIT, TOPIC, Batch, broker_of

LOG = [
    Batch(0, 1, [b"a", b"b"]),
    Batch(2, 2, [b"never", b"never"]),
    Batch(4, 1, marker=COMMIT),
    Batch(5, 2, marker=ABORT),
    Batch(6, 2, [b"c"]),
    Batch(7, 2, marker=COMMIT),
    Batch(8, 3, [b"never", b"never"]),
    Batch(10, 3, marker=ABORT),
]
ABORTED = [(2, 2), (3, 8)]


@pytest.mark.parametrize("gaps", ["expect", "report"])
def test_an_aborted_transaction_is_neither_read_nor_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gaps: str
) -> None:
    monkeypatch.setattr(kafka_brokers, "ID_S", 0.05)
    monkeypatch.setattr(kafka_retention, "ASK_S", 0.1)
    with broker_of(LOG, ABORTED) as servers:
        followed = Followed(servers, tmp_path, TOPIC, gaps=gaps)
        while not followed.refs or not followed.refs[-1].stamp.endswith("-11"):
            followed.poll()
        followed.source.settle([], lambda _: True)
        (figures,) = followed.source.figures()
        followed.die()  # goes on after the last marker
        followed.polls(3)
        followed.source.close()
    assert [(item.item_id, item.image) for item in followed.items()] == [
        (f"{TOPIC}/0/0", b"a"),
        (f"{TOPIC}/0/1", b"b"),
        (f"{TOPIC}/0/6", b"c"),
    ]
    assert (figures.searchable, figures.lag, figures.lost, figures.trouble) == (11, 0, 0, "")
    # A client is not told why an offset is left out: that a topic is written so is for its owner to say.
    said = [(problem.reason, problem.detail.partition(",")[0]) for problem in followed.problems()]
    assert said == (
        [] if gaps == "expect" else [("absent_messages", f"{TOPIC}/0: {count} offsets") for count in (4, 4)]
    )
