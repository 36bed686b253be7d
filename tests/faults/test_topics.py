"""A dose of the campaign on topics: some thousand messages, a handful of kills of each kind."""

from __future__ import annotations

import pytest

from tests.faults.topics import Plan, run
from tests.ingest.kafka_broker import BROKER, NOT_CHECKED
from tests.ingest.s3_server import SERVER
from tests.measured import Measured

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.mark.skipif(BROKER is None or SERVER is None, reason=NOT_CHECKED)
def test_driver_indexer_and_broker_are_killed_and_each_message_is_found_once() -> None:
    report = Measured("topics-quick", [7], quick=True)
    assert run(report, 7, Plan(messages=4000, kills=6)) == []
    assert {row["role"] for row in report.rows} == {"driver", "indexer", "broker"}
