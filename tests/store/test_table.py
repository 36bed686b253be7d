"""A table followed commit by commit shows the files that the Delta library finds when it reads the whole log."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from stream_odml.storage.files import open_files
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.table import Table
from stream_odml.store.tables import quarantine_rows, stamped
from tests.store.world import Item, ingest, new_root


def whole_log(root: Path, name: str) -> set[str]:
    actions = pa.table(DeltaTable(str(root / name)).get_add_actions(flatten=True))
    return set(actions["path"].to_pylist())


def test_appends_merges_and_deletions_are_followed(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    tables = {name: Table(open_files(str(tmp_path)), name) for name in ("gallery", "ledger")}
    sleeper = Table(open_files(str(tmp_path)), "gallery")
    sleeper.refresh()
    held = {name: set(table.refresh()[0]) for name, table in tables.items()}

    def check() -> None:
        for name, table in tables.items():
            came, went = table.refresh()
            assert held[name].isdisjoint(came)
            assert set(went) <= held[name]
            held[name] = (held[name] | set(came)) - set(went)
            assert held[name] == set(table.present) == whole_log(tmp_path, name)
            assert table.refresh() == ([], [])

    for shard in "abcd":
        ingest(writer, shard, [Item(f"{shard}{i}", f"class {i}") for i in range(3)])
        check()
    writer.maintain(MaintenancePolicy(compact_files=2))
    check()
    writer.forget("class", "class 1")
    writer.maintain(MaintenancePolicy(compact_files=2))
    check()
    writer.release()
    sleeper.refresh()
    assert sleeper.present == tables["gallery"].present
    tables["gallery"].forget_seen()
    assert set(tables["gallery"].refresh()[0]) == held["gallery"]


def test_a_handle_opened_anew_after_a_checkpoint_does_not_see_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_odml.store.table.CHECKPOINT_EVERY", 3)
    new_root(str(tmp_path)).release()
    mine, other = (Table(open_files(str(tmp_path)), "quarantine") for _ in range(2))
    bad = quarantine_rows([("s", 0, "not_an_image", "?", b"")])
    rows = stamped(bad, "t.1")
    handles = list[DeltaTable]()
    for _ in range(8):
        mine.refresh()
        mine.append(rows, 1)
        handles.append(mine.handle)
    mine.refresh()
    assert len({id(handle) for handle in handles}) > 1
    assert len(list((tmp_path / "quarantine/_delta_log").glob("*.checkpoint.parquet"))) >= 2
    other.refresh()
    other.append(rows, 2)
    with pytest.raises(CommitFailedError):
        mine.append(rows, 1)
    assert len(mine.refresh()[0]) == 1
    assert set(mine.present) == whole_log(tmp_path, "quarantine")


def test_a_commit_half_written_is_left_for_the_library(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    table = Table(open_files(str(tmp_path)), "gallery")
    table.refresh()
    ingest(writer, "a", [Item("1", "c")])
    writer.release()
    log = sorted((tmp_path / "gallery" / "_delta_log").glob("*.json"))
    whole, before = log[-1].read_text(encoding="utf-8"), table.present
    log[-1].write_text(whole + '{"add": {"path":', encoding="utf-8")
    try:
        table.refresh()
    except Exception:  # the library refuses it too, in words of its own
        assert table.present == before
    log[-1].write_text(whole, encoding="utf-8")
    table.refresh()
    assert set(table.present) == whole_log(tmp_path, "gallery") != set(before)
