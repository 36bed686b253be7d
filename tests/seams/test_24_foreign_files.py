"""Seam 24: what systems and tools leave beside images is no row, spoils none, and is never asked for.

The same litter goes through a folder, a tar made on a Mac, and the demo's source.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from stream_odml.cli.own_images import look_at
from stream_odml.cli.producer import Category, Producer, categories_of
from stream_odml.ingest.landing import land_file
from stream_odml.ingest.passed_over import is_foreign
from stream_odml.ingest.sources import DirectorySource
from tests.ingest.helpers import land_folder
from tests.ingest.pictures import picture
from tests.seams.folders import classes, ingest, write

IMAGES = ("cats/a.png", "cats/b.png", "dogs/a.png", "dogs/b.png")
LITTER = (
    ".DS_Store", "cats/.DS_Store", "._cats", "cats/._a.png", "__MACOSX/cats/._a.png", "__MACOSX/cats/a.png",
    "cats/.ipynb_checkpoints/a-checkpoint.png", ".Trash-1000/files/old.png", ".Trashes/old.png",
    "cats/Thumbs.db", "dogs/desktop.ini", "cats/@eaDir/a.png/SYNOPHOTO_THUMB_M.png", "#recycle/dogs/a.png",
    "$RECYCLE.BIN/x.png", "System Volume Information/x.png", ".git/logo.png", "@Recycle/a.png", "lost+found/a.png",
    ".thumbnails/a.png", ".hidden.png", "cats/a.png@SynoEAStream", "cats/~$a.png",
    "README.md", "LICENSE", "cats/README.txt", "README", "licence.txt",
)  # fmt: skip


def litter(folder: Path) -> Path:
    for name in LITTER:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(99, "PNG") if "old" in name else b"\0\5\x16\7\0\2\0\0Mac OS X")
    return folder


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_foreign_and_images_are_not(name: str) -> None:
    assert is_foreign(name)


@pytest.mark.parametrize(
    "name",
    [
        *IMAGES,
        "./cats/a.png",
        "authors/a.png",
        "notice/b.png",
        "_background_/a.png",
        "a b/ü.png",
        "README.png",
    ],
)
def test_a_class_may_have_any_other_name(name: str) -> None:
    assert not is_foreign(name)


def test_the_inbox_itself_may_hold_litter(tmp_path: Path) -> None:
    litter(tmp_path / "inbox")
    (tmp_path / "inbox/late.parquet.part").write_bytes(b"half")
    shutil.rmtree(tmp_path / "inbox/cats")
    shutil.rmtree(tmp_path / "inbox/dogs")
    source = DirectorySource(tmp_path / "inbox")
    assert source.poll(set()) == []


def test_a_folder_with_litter_lands_its_images_and_says_what_it_left(tmp_path: Path) -> None:
    litter(write(tmp_path / "zoo", *IMAGES))
    (tmp_path / "zoo/cats/notes.txt").write_text("not an image")
    (tmp_path / "zoo/cats/clip.mp4").write_bytes(b"?")
    lines = ingest(tmp_path / "zoo", tmp_path / "inbox")
    assert classes(tmp_path / "inbox") == ["cats", "cats", "dogs", "dogs"]
    assert any(line.startswith("2 files passed over: 1 .mp4 (cats/clip.mp4), 1 .txt") for line in lines), (
        lines
    )
    assert any("hidden or system files" in line and ".DS_Store" in line for line in lines), lines


@pytest.mark.parametrize("folder", ["", "./", "./zoo/", "zoo/train/"])
def test_a_tar_made_on_a_mac_keeps_every_row(tmp_path: Path, folder: str) -> None:
    members = [(name, b"litter") for name in LITTER]
    for number in range(3):
        for suffix, data in (("png", picture(number, "PNG")), ("cls", b"cats")):
            members += [(f"{folder}._{number}.{suffix}", b"Mac OS X"), (f"{folder}{number}.{suffix}", data)]
    with tarfile.open(tmp_path / "zoo.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    land_file(tmp_path / "inbox", tmp_path / "zoo.tar")
    assert classes(tmp_path / "inbox") == ["cats"] * 3


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (IMAGES, {"cats": 2, "dogs": 2}),
        ([f"{split}/{name}" for split in ("train", "test") for name in IMAGES], {"cats": 4, "dogs": 4}),
        ([f"{split}/{name}" for split in ("Training", "val", "eval") for name in IMAGES], {"cats": 6, "dogs": 6}),
        ([f"pets/{name}" for name in IMAGES], {"pets/cats": 2, "pets/dogs": 2}),
        ([f"train/pets/{name}" for name in IMAGES], {"pets/cats": 2, "pets/dogs": 2}),
        ([f"{kind}/small/{n}.png" for kind in ("cats", "dogs") for n in "ab"], {"cats/small": 2, "dogs/small": 2}),
        ([f"{kind}/{n}.png" for kind in ("train", "bus") for n in "ab"], {"train": 2, "bus": 2}),
        ([f"class={kind}/{n}.png" for kind in ("cats", "caf%C3%A9") for n in "ab"], {"cats": 2, "café": 2}),
    ],
)  # fmt: skip
def test_the_demo_and_the_inbox_see_the_same_classes(
    tmp_path: Path, names: list[str], expected: dict[str, int]
) -> None:
    folder = litter(write(tmp_path / "source", *names))
    assert {one.name: len(one.images) for one in categories_of(folder)} == expected
    land_folder(tmp_path / "inbox", folder)
    found = classes(tmp_path / "inbox")
    assert {name: found.count(name) for name in found} == expected


def test_init_counts_classes_as_they_are_stored(tmp_path: Path) -> None:
    """Accents that are composed differently make one class; a name that no class can have makes none."""
    folder = write(tmp_path / "zoo", "caf\u00e9/a.png", "cafe\u0301/b.png", "a\nb/c.png", "dogs /d.png")
    assert look_at(folder).by_class == {"caf\u00e9": 2, "dogs": 1}


def test_the_image_that_the_demo_asks_for_is_one(tmp_path: Path) -> None:
    images = [b"\0\5\x16\7 not an image", picture(1, "PNG")[:50], picture(2, "PNG"), picture(3, "PNG")]
    producer = Producer(str(tmp_path), iter([Category("cats", images)]), 1, 0.0, lambda: True)
    producer._run()
    (shard,) = producer.landed
    assert shard.image == picture(2, "PNG")
    assert shard.item_id == "shard-00000/0/2"
