"""Seam 28: a folder of any name lands under a name made from it, and one that has grown lands its new part.

The new part is told by the bytes of its images, so renaming one makes nothing new.
"""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest.landing import ShardExists
from stream_odml.ingest.reading import RawItem
from stream_odml.ingest.shard import shard_name
from stream_odml.storage.publish import check_name
from tests.ingest.pictures import picture
from tests.seams.folders import classes, ingest, rows, write

NAMES = ["my photos", "фото", "photos (1)", "photos [1]", "-x", "_x", ".x", "日本", "café", "a'b\"c", "x" * 200, "a\nb",
         "100%", "a:b", "con.", "😀"]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "photos", "photos.v2"])
def test_a_shard_has_a_readable_name_of_its_folder(name: str) -> None:
    made = check_name(shard_name(name))
    assert made == name or re.search(r"-[0-9a-f]{6}$", made)
    for word in re.findall("[A-Za-z]{2,}", name[:90]):
        assert word in made
    assert shard_name(unicodedata.normalize("NFD", name)) == made


def test_names_stay_apart() -> None:
    assert len({shard_name(name) for name in NAMES}) == len(NAMES)
    assert re.fullmatch(r"my_photos-[0-9a-f]{6}", shard_name("my photos"))


@pytest.mark.parametrize("name", ["my photos", "фото", "photos (1)", "%41", "[a]"])
@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_things_of_any_name_land(tmp_path: Path, name: str, kind: str) -> None:
    from stream_odml.ingest.landing import land_items
    from tests.ingest.helpers import some_items
    from tests.ingest.webdataset import land_tar

    path = write(tmp_path / name, "cats/a.png", "dogs/b.png")
    if kind != "folder":
        land = {"parquet": land_items, "tar": land_tar}[kind]
        path = Path(land(tmp_path / "made", "x", some_items(2))).rename(tmp_path / f"{name}.{kind}")
    for _ in range(2):
        ingest(path, tmp_path / "inbox", "base")
    assert len(classes(tmp_path / "inbox")) == 2
    (shard,) = (entry for entry in os.listdir(tmp_path / "inbox") if entry != "base.task.json")
    assert shard.startswith(shard_name(name))


@pytest.mark.parametrize("way", [".", "./", "..", "../zoo/", "cats/.."])
def test_ways_to_name_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    write(tmp_path / "zoo", "cats/a.png", "dogs/b.png")
    monkeypatch.chdir(tmp_path / "zoo/dogs" if way == ".." else tmp_path / "zoo")
    ingest(way, tmp_path / "inbox")
    assert os.listdir(tmp_path / "inbox") == ["zoo"]


def test_the_root_of_all_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="root of the file system"):
        ingest("/", tmp_path / "inbox")


def test_a_name_of_one_s_own(tmp_path: Path) -> None:
    folder = write(tmp_path / "my photos", "cats/a.png", "dogs/b.png")
    (line,) = ingest(folder, tmp_path / "inbox", name="spring")
    assert line == f"landed {tmp_path}/inbox/spring"
    write(folder, "cats/new.png", first=7)
    ingest(folder, tmp_path / "inbox", name="spring")
    assert [name[:7] for name in sorted(os.listdir(tmp_path / "inbox"))] == ["spring", "spring-"]


def test_a_folder_that_has_grown_lands_its_new_part(tmp_path: Path) -> None:
    folder, inbox = write(tmp_path / "my photos", "cats/a.png", "dogs/b.png"), tmp_path / "inbox"
    ingest(folder, inbox)
    assert any("nothing new" in line for line in ingest(folder, inbox))
    shutil.move(folder / "cats/a.png", folder / "cats/renamed.png")
    assert any("nothing new" in line for line in ingest(folder, inbox))
    write(folder, "cats/new.png", "birds/c.png", first=10)
    lines = ingest(folder, inbox)
    assert "2 of 4 files landed before; 2 new to land" in lines
    write(folder, "birds/d.png", first=20)
    assert "4 of 5 files landed before; 1 new to land" in ingest(folder, inbox)
    assert any("nothing new" in line for line in ingest(folder, inbox))
    found = [(row.class_name, row.image) for row in rows(inbox) if isinstance(row, RawItem)]
    expected = [("birds", 11), ("birds", 20), ("cats", 0), ("cats", 10), ("dogs", 1)]
    assert sorted(found) == sorted((name, picture(n, "PNG")) for name, n in expected)
    assert len(os.listdir(inbox)) == 3


def test_a_task_of_a_folder_that_grew_has_all_its_parts(tmp_path: Path) -> None:
    folder, inbox = write(tmp_path / "zoo", "cats/a.png", "dogs/b.png"), tmp_path / "inbox"
    ingest(folder, inbox)
    write(folder, "cats/new.png", first=10)
    ingest(folder, inbox, "base")
    parts = sorted(name for name in os.listdir(inbox) if name != "base.task.json")
    text = (inbox / "base.task.json").read_text()
    assert len(parts) == 2
    assert all(f'"{part}"' in text for part in parts)


def test_two_folders_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    """The second lands whole, as a part, for none of its images has landed."""
    for place, first in (("a", 0), ("b", 5)):
        ingest(write(tmp_path / place / "zoo", "cats/a.png", "dogs/b.png", first=first), tmp_path / "inbox")
    assert classes(tmp_path / "inbox") == ["cats", "dogs"] * 2


def test_the_inbox_inside_the_folder_does_not_land(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "zoo", "cats/a.png", "dogs/b.png")
    monkeypatch.chdir(tmp_path / "zoo")
    for _ in range(3):
        ingest(".", Path("inbox"))
    assert classes(tmp_path / "zoo/inbox") == ["cats", "dogs"]


def test_an_unfinished_folder_of_that_name_is_not_touched(tmp_path: Path) -> None:
    write(tmp_path / "inbox/zoo", "cats/a.png")
    with pytest.raises(ShardExists, match="is no complete shard"):
        ingest(write(tmp_path / "zoo", "cats/b.png", first=3), tmp_path / "inbox")
    assert os.listdir(tmp_path / "inbox/zoo") == ["cats"]


def test_an_image_that_moved_to_another_class_is_the_same_item_there(tmp_path: Path) -> None:
    folder, inbox = write(tmp_path / "zoo", "cats/a.png", "cats/b.png", "dogs/c.png"), tmp_path / "inbox"
    ingest(folder, inbox)
    (first,) = [row for row in rows(inbox) if isinstance(row, RawItem) and row.image == picture(0, "PNG")]
    for number, (old, new) in enumerate([("cats", "dogs"), ("dogs", "cats"), ("cats", "dogs")], start=2):
        shutil.move(folder / old / "a.png", folder / new / "a.png")
        lines = ingest(folder, inbox)
        assert any(line.startswith("1 of them in another class") for line in lines), lines
        assert any("nothing new" in line for line in ingest(folder, inbox))
        assert len(os.listdir(inbox)) == number
        found = [row for row in rows(inbox) if isinstance(row, RawItem) and row.item_id == first.item_id]
        assert len(found) == number
        assert {row.image for row in found} == {first.image}
        assert sum(row.class_name == new for row in found) == (number + (new == "cats")) // 2


def test_an_image_that_is_copied_to_another_class_is_a_second_item(tmp_path: Path) -> None:
    folder, inbox = write(tmp_path / "zoo", "cats/a.png", "dogs/c.png"), tmp_path / "inbox"
    ingest(folder, inbox)
    shutil.copy(folder / "cats/a.png", folder / "dogs/a.png")
    assert not any("another class" in line for line in ingest(folder, inbox))
    found = [row for row in rows(inbox) if isinstance(row, RawItem) and row.image == picture(0, "PNG")]
    assert sorted(row.class_name for row in found) == ["cats", "dogs"]
    assert len({row.item_id for row in found}) == 2


def test_a_table_that_moved_is_the_same_and_an_image_behind_one_is_reported(tmp_path: Path) -> None:
    folder, inbox = write(tmp_path / "zoo", "t/cats/a.png"), tmp_path / "inbox"
    columns = {"image": [picture(9)], "label": ["oak"]}
    pq.write_table(pa.table(columns), folder / "all.parquet")
    ingest(folder, inbox)
    (folder / "old").mkdir()
    shutil.move(folder / "all.parquet", folder / "old/all.parquet")
    assert any("nothing new" in line for line in ingest(folder, inbox))
    shutil.move(folder / "t/cats", folder / "t/dogs")
    assert any("forget those items" in line for line in ingest(folder, inbox))
    assert sorted(classes(inbox)) == ["oak", "t/cats", "t/dogs"]


@pytest.mark.parametrize("name", ["authors", "README", "notice.txt", "photos.part", "citation"])
def test_a_folder_whose_name_is_that_of_a_document_is_read(tmp_path: Path, name: str) -> None:
    ingest(write(tmp_path / name, "cats/a.png", "dogs/b.png"), tmp_path / "inbox")
    assert classes(tmp_path / "inbox") == ["cats", "dogs"]


@pytest.mark.parametrize("name", ["recycler", "Thumbs.db"])
def test_a_name_that_no_source_reads_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"shard name '{name}' is one that systems use.*choose another name"):
        ingest(write(tmp_path / name, "cats/a.png"), tmp_path / "inbox")
    assert not (tmp_path / "inbox").exists()
    ingest(tmp_path / name, tmp_path / "inbox", name="spring")
    assert classes(tmp_path / "inbox") == ["cats"]


@pytest.mark.parametrize("bad", ["cats/a\\b.png", "cats\\x/b.png", "A: apples/b.png", "C:b.png"])
def test_a_path_that_no_manifest_may_name_costs_its_file_alone(tmp_path: Path, bad: str) -> None:
    lines = ingest(write(tmp_path / "zoo", "dogs/a.png", bad), tmp_path / "inbox")
    assert classes(tmp_path / "inbox") == ["dogs"]
    assert any(line.startswith("1 file (") and line.endswith("rename it") for line in lines), lines
