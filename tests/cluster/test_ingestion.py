"""Tier 1 by its rules: order, back-pressure, retries, and who is to blame when a process ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from stream_odml.cluster import ingestion
from stream_odml.cluster.actors import IndexedBatch
from stream_odml.cluster.ingestion import Discovery, Ingestion
from stream_odml.config.stream import IngestConfig
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import LogFigures
from stream_odml.store.tables import GALLERY, IngestBatch
from stream_odml.store.writer import Writer
from tests.cluster.small_root import claim, shard


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = claim(tmp_path / "root")
    yield made
    made.release()


def batch_of(refs: list[ShardRef], away: frozenset[str] = frozenset()) -> IndexedBatch:
    """Shards without a good row, as an indexer would answer; those in ``away`` unreachable."""
    rows, counts = GALLERY.empty_table(), {"trainable": {}, "reasons": {}, "version": "v"}
    done = [IngestBatch([r.shard_id], rows, counts={r.shard_id: counts}) for r in refs if r.name not in away]
    return IndexedBatch(done, {r.shard_id: "no route to host" for r in refs if r.name in away})


class FakeRay:
    """Calls of indexers that answer when the test says so."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[ShardRef]]] = []
        self.answers: dict[int, Any] = {}

    def indexers(self, count: int) -> list[Any]:
        return [_Indexer(self, number) for number in range(count)]

    def wait(self, calls: list[int], **_: Any) -> tuple[list[int], list[int]]:
        return [c for c in calls if c in self.answers], [c for c in calls if c not in self.answers]

    def get(self, call: int) -> Any:
        if isinstance(self.answers[call], Exception):
            raise self.answers[call]
        return self.answers[call]


class _Indexer:
    def __init__(self, fake: FakeRay, number: int) -> None:
        self._fake, self._number, self.index = fake, number, self

    def remote(self, refs: list[ShardRef], version: str) -> int:
        self._fake.calls.append((self._number, refs))
        return len(self._fake.calls) - 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    monkeypatch.setattr(ingestion, "ray", made)
    return made


def names(fake: FakeRay, first: int = 0) -> list[list[str]]:
    return [[ref.name for ref in refs] for _, refs in fake.calls[first:]]


def test_a_backlog_waits_in_the_ledger_and_goes_out_in_order(writer: Writer, fake: FakeRay) -> None:
    tier = Ingestion(writer, fake.indexers(2), IngestConfig(batch_shards=2))
    tier.land([shard(f"s{n}") for n in range(20)])
    tier.dispatch("v")
    assert names(fake) == [["s0", "s1"], ["s2", "s3"], ["s4", "s5"], ["s6", "s7"]]
    tier.dispatch("v")
    assert len(fake.calls) == 4  # two batches an indexer, however much waits
    fake.answers[0] = batch_of(fake.calls[0][1])
    tier.gather(0.0)
    assert [s.name for s in tier.commit()] == ["s0", "s1"]
    tier.dispatch("v")
    assert names(fake, 4) == [["s8", "s9"]]


def test_what_cannot_be_committed_is_kept_and_holds_the_rest_back(
    writer: Writer, fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = Ingestion(writer, fake.indexers(1), IngestConfig(batch_shards=1))
    tier.land([shard(f"s{n}") for n in range(9)])
    tier.dispatch("v")
    fake.answers[0] = batch_of(fake.calls[0][1])
    tier.gather(0.0)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "commit_ingest", _full_disk)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                tier.commit()
        tier.dispatch("v")
        assert len(fake.calls) == 2
    assert [s.name for s in tier.commit()] == ["s0"]
    tier.dispatch("v")
    assert names(fake, 2) == [["s2"]]


def _full_disk(batch: object) -> str:
    raise OSError(28, "No space left on device")


def test_unreachable_bytes_are_asked_for_again(
    writer: Writer, fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingestion, "RETRY_S", 60.0)
    tier = Ingestion(writer, fake.indexers(1), IngestConfig())
    tier.land([shard("near"), shard("far")])
    tier.dispatch("v")
    fake.answers[0] = batch_of(fake.calls[0][1], frozenset({"far"}))
    tier.gather(0.0)
    assert [s.name for s in tier.commit()] == ["near"]
    tier.dispatch("v")
    assert len(fake.calls) == 1  # not at once
    tier._retry_at.clear()  # as if its time had come
    tier.dispatch("v")
    assert names(fake, 1) == [["far"]]
    assert writer.ledger.shards[fake.calls[1][1][0].shard_id].attempts == 0  # it is no fault of the shard


def test_only_a_shard_that_was_alone_is_blamed(writer: Writer, fake: FakeRay) -> None:
    tier = Ingestion(writer, fake.indexers(1), IngestConfig(batch_shards=2, tries=2))
    tier.land([shard(f"s{n}") for n in range(4)])
    tier.dispatch("v")
    for call in (0, 1):  # the process ended with both batches on it
        fake.answers[call] = ray.exceptions.ActorDiedError()
    tier.gather(0.0)
    tier.commit()
    assert {s.attempts for s in writer.ledger.shards.values()} == {0}
    for expected in ("s0", "s0"):
        tier.dispatch("v")
        assert names(fake)[-1] == [expected]
        fake.answers[len(fake.calls) - 1] = ray.exceptions.ActorDiedError()
        tier.gather(0.0)
        tier.commit()
    assert [s.name for s in writer.ledger.in_state("set_aside")] == ["s0"]
    for expected in ("s1", "s2", "s3"):
        tier.dispatch("v")
        assert names(fake)[-1] == [expected]  # one at a time until each is cleared
        fake.answers[len(fake.calls) - 1] = batch_of(fake.calls[-1][1])
        tier.gather(0.0)
        tier.commit()
    assert not writer.ledger.landed


def test_indexers_that_do_not_start_are_a_problem_of_the_stream_and_of_no_shard(
    writer: Writer, fake: FakeRay
) -> None:
    failed = ray.exceptions.RayTaskError(
        "Indexer.__init__", "Traceback:\nValueError: no such setting", ValueError()
    )
    tier = Ingestion(writer, fake.indexers(1), IngestConfig(tries=1))
    tier.land([shard("s0")])
    for call in range(3):
        tier._retry_at.clear()  # as if its time had come
        tier.dispatch("v")
        fake.answers[call] = ray.exceptions.ActorDiedError(failed)
        tier.gather(0.0)
        assert not tier.commit()
        assert "ValueError: no such setting; see their logs" in tier.problem
        assert tier.problem.endswith("start the stream again")
    tier._retry_at.clear()
    tier.dispatch("v")
    fake.answers[3] = ray.exceptions.RayTaskError("index", "OSError: away", OSError("away"))
    tier.gather(0.0)
    assert not tier.commit()
    assert tier.problem.endswith("they are tried again by themselves")
    assert [s.attempts for s in writer.ledger.landed.values()] == [0]
    tier._retry_at.clear()
    tier.dispatch("v")
    fake.answers[4] = batch_of(fake.calls[4][1])
    tier.gather(0.0)
    assert [s.name for s in tier.commit()] == ["s0"]
    assert tier.problem == ""


def test_what_did_not_fit_into_a_batch_comes_again_at_once(writer: Writer, fake: FakeRay) -> None:
    tier = Ingestion(writer, fake.indexers(1), IngestConfig())
    tier.land([shard(f"s{n}") for n in range(3)])
    tier.dispatch("v")
    refs = fake.calls[0][1]
    fake.answers[0] = batch_of(refs[:1])
    tier.gather(0.0)
    assert [s.name for s in tier.commit()] == ["s0"]
    tier.dispatch("v")
    assert names(fake, 1) == [["s1", "s2"]]


class _Source:
    def __init__(self, *answers: list[ShardRef] | Exception) -> None:
        self.answers = list(answers)
        self.asked = threading.Event()

    def poll(self, known: object) -> list[ShardRef]:
        answer = self.answers.pop(0) if self.answers else []
        if not self.answers:
            self.asked.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_one_source_s_trouble_stops_no_other_and_is_reported(writer: Writer) -> None:
    tree = "Generic S3 error\n \x1b[31m\u21b3\x1b[0m Error performing GET http://s3/b in 9ms - 403 Forbidden"
    broken = _Source(*[OSError(tree)] * 50, ValueError("a gap in the log"))
    well = _Source([shard("a")], [shard("b")])
    discovery = Discovery([broken, well], writer.store, 0.01)
    discovery.start()
    found: list[str] = []
    deadline = time.monotonic() + 240
    while len(found) < 2 and time.monotonic() < deadline:
        found += [ref.name for ref in discovery.take() or []]
    assert found == ["a", "b"]
    assert discovery.error is not None
    said = "OSError: Error performing GET http://s3/b - 403 Forbidden; give these credentials the right to"
    assert discovery.error.startswith(said), "one line with a remedy, as of a command"
    assert broken.asked.wait(60)
    while discovery.error is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert discovery.error is None
    discovery.stop()


class _Log(_Source):
    """A log whose lag grows by one each time that it is asked how far it is."""

    def __init__(self, *answers: list[ShardRef] | Exception) -> None:
        super().__init__(*answers)
        self.trouble, self.asked_times = "", 0

    def settle(self, waiting: object, is_ledgered: object) -> None:
        self.asked_times += 1

    def figures(self) -> list[LogFigures]:
        return [
            LogFigures("photos", 0, 7, 0),
            LogFigures("photos", 1, 7, self.asked_times, trouble=self.trouble),
        ]

    def close(self) -> None:
        pass


def grows(discovery: Discovery) -> bool:
    before = discovery.figures()[1].lag
    deadline = time.monotonic() + 60
    while discovery.figures()[1].lag < before + 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    return discovery.figures()[1].lag >= before + 3


def test_lag_is_counted_while_a_log_cannot_be_read(writer: Writer) -> None:
    discovery = Discovery([_Log(*[TransientReadError("no broker")] * 100_000)], writer.store, 0.01)
    discovery.start()
    assert grows(discovery)
    discovery.stop()


def test_lag_is_counted_while_the_driver_takes_nothing(writer: Writer) -> None:
    """Its disk is full, say: what was found waits, and the log is asked for no more."""
    log = _Log(*[[shard(f"s{n}")] for n in range(100)])
    discovery = Discovery([log], writer.store, 0.01)
    discovery.start()
    while len(log.answers) > 91:  # eight lie in the queue, one waits for room
        time.sleep(0.01)
    assert grows(discovery)
    assert len(log.answers) == 91
    discovery.stop()


def test_trouble_of_one_partition_is_reported_while_others_are_read(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    log = _Log(*[[shard(f"s{n}")] for n in range(1000)])
    discovery = Discovery([log], writer.store, 0.01)
    discovery.start()
    deadline = time.monotonic() + 60
    for trouble, said in (
        ("it has no leader", "photos/1: it has no leader"),
        ("it is slow", "photos/1: it is slow"),
    ):
        log.trouble = trouble
        while discovery.error != said and time.monotonic() < deadline:
            discovery.take()
    log.trouble = ""
    while discovery.error is not None and time.monotonic() < deadline:
        discovery.take()
    assert discovery.error is None
    discovery.stop()
    assert [line for line in caplog.messages if "photos" in line] == [
        "photos/1 is in trouble: it has no leader",
        "photos/1 is well again",
    ]


class Killer:
    """An indexer whose process ends when it meets a certain shard."""

    def index(self, refs: list[ShardRef], version: str) -> IndexedBatch:
        if any(ref.name.startswith("killer") for ref in refs):
            os._exit(1)
        return batch_of(refs)


@pytest.fixture
def killers(ray_cpus: int) -> Iterator[list[Any]]:
    """Two such actors, gone afterwards: the Ray that the tests share is left idle."""
    actor = ray.remote(num_cpus=0.2, max_restarts=-1, max_task_retries=0)(Killer)
    actors = [actor.remote() for _ in range(2)]
    yield actors
    for one in actors:
        ray.kill(one)


@pytest.mark.ray
def test_a_shard_that_ends_real_processes_is_set_aside_and_all_others_are_indexed(
    writer: Writer, killers: list[Any]
) -> None:
    tier = Ingestion(writer, killers, IngestConfig(batch_shards=4, tries=2))
    tier.land([shard("killer" if n == 9 else f"s{n:02d}") for n in range(24)])
    deadline = time.monotonic() + 120
    while writer.ledger.landed and time.monotonic() < deadline:
        tier.gather(0.1)
        tier.commit()
        tier.dispatch("v")
    assert [s.name for s in writer.ledger.in_state("set_aside")] == ["killer"]
    assert len(writer.ledger.indexed) == 23
    assert sum(s.attempts for s in writer.ledger.indexed.values()) == 0
    assert "killed_reader" in (writer.ledger.in_state("set_aside")[0].problem or "")
