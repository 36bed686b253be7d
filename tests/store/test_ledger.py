"""The ledger's state is a pure function of its rows, whatever the pieces they come in."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from stream_odml.store.errors import UnknownSubject
from stream_odml.store.ledger import LedgerState

START = datetime(2026, 1, 1, tzinfo=UTC)


class Rows:
    """Ledger rows, numbered as the writer would."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, kind: str, subject: str, task: str = "", txn: str = "", **detail: Any) -> "Rows":
        seq = len(self.rows)
        time = START + timedelta(seconds=seq)
        self.rows.append(
            {
                "seq": seq,
                "kind": kind,
                "subject": subject,
                "task": task,
                "txn": txn,
                "detail": json.dumps(detail),
                "time": time,
                "epoch": 1,
            }
        )
        return self

    def land(self, *shards: str) -> "Rows":
        for shard in shards:
            self.add("landed", shard, name=shard, uri=f"/{shard}", format="tar", size_bytes=7, mtime=1.5)
        return self

    def index(self, *shards: str, txn: str = "t") -> "Rows":
        for shard in shards:
            self.add(
                "indexed", shard, txn=txn, rows=3, held_out=1, quarantined=2, classes={"cat": 2, shard: 1}
            )
        return self


def stream() -> Rows:
    rows = Rows().add("epoch", "driver").land("a", "b", "c", "d").index("b", "a").index("c", txn="u")
    rows.add("set_aside", "d", reason="no footer", final=False).add("set_aside", "d", reason="no footer")
    rows.add("assigned", "b", task="task-0001", reason="images").add(
        "assigned", "a", task="task-0001", reason="images"
    )
    rows.add("attempt", "v1", task="task-0001", parent="v0").add(
        "refused", "v1", task="task-0001", reason="recall"
    )
    rows.add("attempt", "v1b", task="task-0001", parent="v0").add("forget", "cat", of="class")
    return rows


def test_shards_by_state_in_landing_order_with_what_was_found() -> None:
    state = LedgerState.replay(stream().rows)
    assert list(state.shards) == ["a", "b", "c", "d"]
    assert [s.shard_id for s in state.in_state("assigned")] == ["a", "b"]
    assert state.shards["d"].state == "set_aside"
    assert (state.shards["d"].attempts, state.shards["d"].problem, state.tally.set_aside) == (
        2,
        "no footer",
        1,
    )
    shard = state.shards["c"]
    assert (shard.rows, shard.held_out, shard.quarantined, shard.size_bytes) == (3, 1, 2, 7)
    assert (shard.detail["mtime"], shard.classes) == (1.5, {"cat": 2, "c": 1})
    assert state.txns == {"t", "u"}


def test_the_open_task_gathers_what_waits() -> None:
    state = LedgerState.replay(stream().land("e").index("e").rows)
    assert [s.shard_id for s in state.indexed.values()] == ["c", "e"]
    assert state.open_task.task_id == "task-0002"
    assert state.open_task.classes == {"cat": 4, "c": 1, "e": 1}


def test_a_refused_attempt_is_replaced_and_a_running_one_resumed() -> None:
    state = LedgerState.replay(stream().rows)
    attempt = state.current_attempt("task-0001", "v0", committed=set())
    assert attempt is not None
    assert attempt.version_id == "v1b"
    assert state.current_attempt("task-0001", "v0", committed={"v1b"}) is None
    assert state.current_attempt("task-0001", "elsewhere", committed=set()) is None
    assert state.tasks["task-0001"].refusals == 1
    with pytest.raises(UnknownSubject, match="task-0009"):
        state.current_attempt("task-0009", "v0", committed=set())


def test_tasks_are_due_in_the_order_they_closed_until_learnt_or_skipped() -> None:
    rows = stream().add("assigned", "c", task="task-0002", reason="age")
    state = LedgerState.replay(rows.rows)
    assert [t.task_id for t in state.due_tasks(set())] == ["task-0001", "task-0002"]
    assert [t.task_id for t in state.due_tasks({"task-0001"})] == ["task-0002"]
    state = LedgerState.replay(rows.add("skipped", "task-0002", task="task-0002", reason="rolled back").rows)
    assert state.due_tasks({"task-0001"}) == []


def test_a_tombstone_covers_what_landed_before_it() -> None:
    state = LedgerState.replay(stream().land("late").rows)
    assert state.forgotten("a", "cat", "x")
    assert not state.forgotten("a", "dog", "x")
    assert not state.forgotten("late", "cat", "x")


def test_a_repeated_row_changes_nothing() -> None:
    rows = stream().rows
    assert LedgerState.replay(rows, after=LedgerState.replay(rows)) == LedgerState.replay(rows)
    assert LedgerState.replay(rows, after=LedgerState.replay(rows)).shards.keys() == {"a", "b", "c", "d"}


def test_replay_in_pieces_and_in_any_order_within_a_piece_equals_replay_at_once() -> None:
    rows, whole = stream().rows, LedgerState.replay(stream().rows)
    rng = np.random.default_rng(0)
    for _ in range(50):
        cuts = sorted(rng.choice(len(rows), size=3, replace=False).tolist())
        state: LedgerState | None = None
        for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            piece = [rows[i] for i in rng.permutation(np.arange(start, end))]
            state = LedgerState.replay(piece, after=state)
        assert state == whole


def test_a_kind_of_a_later_release_is_passed_over() -> None:
    state = LedgerState.replay(stream().add("polished", "a").rows)
    assert state.seq == len(stream().rows)
