"""A dose of the campaign on topics: some thousand messages, a handful of kills of each kind."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deltalake.exceptions import DeltaError

from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store
from tests.faults.topic_holes import run_holes
from tests.faults.topic_oracle import PARTITIONS, TOPIC, judge, searchable, sent_messages
from tests.faults.topics import ROLES, Plan, Topic, run
from tests.ingest.kafka_broker import BROKER, NOT_CHECKED, durable_broker, make_topic
from tests.ingest.s3_server import SERVER
from tests.measured import Measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
KILLS = 8


@pytest.mark.ray
@pytest.mark.skipif(BROKER is None or SERVER is None, reason=NOT_CHECKED)
def test_driver_indexer_and_broker_are_killed_and_each_message_is_found_once() -> None:
    report = Measured("topics-quick", [7], quick=True)
    assert run(report, 7, Plan(messages=4000, kills=6)) == []
    assert {row["role"] for row in report.rows} == set(ROLES)


@pytest.mark.skipif(BROKER is None or SERVER is None, reason=NOT_CHECKED)
def test_a_driver_and_a_broker_that_are_killed_again_and_again(tmp_path: Path) -> None:
    """Without Ray: each kill is of the process that finds, indexes and commits, or of the broker."""
    chosen, root, messages = random.Random(3), tmp_path / "root", 6000
    with durable_broker() as broker:
        make_topic(broker.servers, TOPIC, PARTITIONS)
        topic = Topic(broker, messages)
        sender, store, kills = topic.start(), None, 0
        command = [sys.executable, "-m", "tests.faults.topic_driver", str(root), broker.servers, TOPIC]
        driver = subprocess.Popen(command)
        try:
            deadline, due = time.monotonic() + 900, 1
            while topic.seen < messages or kills < KILLS:
                assert time.monotonic() < deadline, f"{topic.seen} of {messages}"
                assert driver.poll() is None, driver.returncode
                time.sleep(0.05)
                with contextlib.suppress(OSError, NotAStreamRoot, DeltaError):
                    store = store or Store.open(str(root), keep_gallery=False)
                    store.refresh()
                    topic.seen = searchable(store)
                if kills < KILLS and topic.seen >= due:  # by what is done, not by the clock
                    if kills % 2:
                        broker.kill()
                        broker.start()
                    else:
                        driver.kill()
                        driver.wait()
                        driver = subprocess.Popen(command)
                    kills += 1
                    due = min(messages, topic.seen + chosen.randrange(1, messages // KILLS))
            sender.join(timeout=60)
            sent = list(sent_messages(broker))
            while store is None or searchable(store) < sum(map(len, sent)):
                assert time.monotonic() < deadline
                time.sleep(0.1)
                assert store is not None
                store.refresh()
        finally:
            topic.stop()
            driver.kill()
            driver.wait()
    assert judge(root, sent) == []
    assert kills == KILLS


def test_each_offset_is_an_item_or_part_of_a_reported_hole() -> None:
    report = Measured("holes", [1], quick=True)
    assert run_holes(report, 1) == []
    assert report.figures["kafka_holes"] >= PARTITIONS
