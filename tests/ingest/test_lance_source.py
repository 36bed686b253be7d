"""Following a Lance dataset: each version that appends is a shard, also after it was cleaned up."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

from stream_odml.ingest.lance_source import LanceTableSource
from stream_odml.ingest.reasons import BadShard
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.versioned_table import VersionsGone
from tests.ingest.helpers import read
from tests.ingest.test_iceberg_source import ids, rows


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "photos")


def append(place: str, *firsts: int, **options: Any) -> None:
    for first in firsts:
        lance.write_dataset(rows(first), place, **{"mode": "append", **options})


def test_each_version_is_one_shard_of_its_own_rows(place: str) -> None:
    source = LanceTableSource(place)
    assert source.poll(set()) == []
    append(place, 0, 3, 6, 9)
    refs = source.poll(set())
    assert [ref.name for ref in refs] == [f"photos-v{n:08d}" for n in range(1, 5)]
    assert [ids(ref) for ref in refs] == [[f"i{3 * v + n}" for n in range(3)] for v in range(4)]
    assert ShardRef.from_dict(refs[0].to_dict()) == refs[0]
    assert LanceTableSource(place).poll({ref.stamp for ref in refs[:3]}) == refs[3:]
    assert LanceTableSource(place, start_version=3).poll(set()) == refs[2:]
    assert LanceTableSource(place, max_new=2).poll(set()) == refs[:2]


def test_only_new_rows_come(place: str) -> None:
    append(place, 0, 3)
    lance.dataset(place).delete("id = 'i1'")
    merge = lance.dataset(place).merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    merge.execute(rows(5, 2))
    lance.dataset(place).optimize.compact_files()
    lance.dataset(place).create_scalar_index("id", "BTREE")
    append(place, 20, mode="overwrite")
    found = [ids(ref) for ref in LanceTableSource(place).poll(set())]
    assert [sorted(one) for one in found if one] == [
        ["i0", "i1", "i2"],
        ["i3", "i4", "i5"],
        ["i5", "i6"],
        ["i20", "i21", "i22"],
    ]


def test_a_version_that_was_cleaned_up_is_read_all_the_same_and_one_that_was_missed_is_reported(
    place: str,
) -> None:
    append(place, 0, 3, 6)
    refs = LanceTableSource(place).poll(set())
    lance.dataset(place).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    assert [ids(ref) for ref in refs] == [[f"i{3 * v + n}" for n in range(3)] for v in range(3)]
    assert LanceTableSource(place).poll({ref.stamp for ref in refs}) == []
    with pytest.raises(VersionsGone, match=r"version 1 was cleaned up.*source\.start_version: 3"):
        LanceTableSource(place).poll(set())


def test_a_file_that_is_broken_or_gone_is_refused(place: str) -> None:
    append(place, 0, 3)
    broken, gone = LanceTableSource(place).poll(set())
    for ref, harm in (
        (broken, lambda path: path.write_bytes(b"x" * path.stat().st_size)),
        (gone, Path.unlink),
    ):
        assert ref.manifest is not None
        harm(Path(place) / ref.manifest.files[0].path)
        with pytest.raises(BadShard, match=r"corrupt_file|missing_file"):
            read(ref)


def test_a_file_that_ends_its_reader_ends_no_more_than_that(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(place, 0, 3)
    first, second = LanceTableSource(place).poll(set())
    (tmp_path / "ill/lance").mkdir(parents=True)
    (tmp_path / "ill/lance/__init__.py").write_text("")
    (tmp_path / "ill/lance/file.py").write_text(
        "import os\nclass LanceFileReader:\n    def __init__(self, *_):\n        os.abort()\n"
    )
    with monkeypatch.context() as ill:
        ill.syspath_prepend(tmp_path / "ill")
        with pytest.raises(BadShard, match=r"killed_reader.*signal 6"):
            read(first)
    assert ids(second) == ["i3", "i4", "i5"]
