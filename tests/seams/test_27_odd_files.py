"""Seam 27: odd but honest files are read: long notes in a PNG, UUIDs as ids, times in any unit, marks before text; and
what cannot be read says what was there."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from stream_odml.config.service import DEFAULT_MAX_PIXELS as LIMIT
from stream_odml.ingest import fields
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.landing import land_file
from stream_odml.ingest.reading import RawItem, check_rows
from stream_odml.ingest.reasons import BadImage, BadShard, Reason, RowError, RowProblem
from stream_odml.ingest.shard import ShardRef
from tests.ingest.helpers import only, read
from tests.ingest.pictures import encoded, picture, png_bomb
from tests.seams.folders import ingest

MIB = 1 << 20
WHEN = datetime(2024, 5, 1, 12, 30, 0, 250_000, tzinfo=UTC)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return png[:33] + chunk(kind, data) + png[33:]


def many_texts(png: bytes) -> bytes:
    """Each of them short enough for Pillow, all of them not."""
    return png[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * (MIB - 9))) * 80 + png[33:]


NOTES = {
    "text": lambda: with_chunk(picture(), b"tEXt", b"Comment\0" + b"x" * (3 * MIB)),
    "compressed text": lambda: with_chunk(picture(), b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (3 * MIB))),
    "a bomb of text": lambda: with_chunk(picture(), b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (300 * MIB), 9)),
    "international text": lambda: with_chunk(picture(), b"iTXt", b"XML\0\0\0\0\0" + b"<x/>" * MIB),
    "colour profile": lambda: with_chunk(picture(), b"iCCP", b"icc\0\0" + zlib.compress(bytes(3 * MIB))),
    "many texts": lambda: many_texts(picture()),
}  # fmt: skip


@pytest.mark.parametrize("note", NOTES)
def test_long_notes_in_a_png_do_not_matter(note: str) -> None:
    assert (decode_image(NOTES[note](), 16, LIMIT) == decode_image(picture(), 16, LIMIT)).all()


def test_a_png_with_notes_keeps_its_transparency_and_its_orientation_and_its_limit() -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    plain = encoded(image, "PNG", exif=exif)
    noted = with_chunk(plain, b"tEXt", b"Comment\0" + b"x" * (80 * MIB))
    assert (decode_image(noted, 16, LIMIT) == decode_image(plain, 16, LIMIT)).all()
    assert decode_image(noted, 16, LIMIT)[-1, 0].tolist() == [0, 0, 255]
    with pytest.raises(BadImage) as refusal:
        decode_image(
            with_chunk(png_bomb(), b"zTXt", b"k\0\0" + zlib.compress(b"x" * (3 * MIB))),
            16,
            LIMIT,
        )
    assert refusal.value.reason is Reason.IMAGE_BOMB
    assert PngImagePlugin.MAX_TEXT_CHUNK == MIB, "the limit of other users of Pillow is as it was"


def test_long_profiles_and_comments_in_other_formats() -> None:
    image = Image.open(io.BytesIO(picture()))
    profile = np.random.default_rng(0).bytes(3 * MIB)
    for format in ("JPEG", "WEBP", "TIFF"):
        decode_image(encoded(image, format, icc_profile=profile), 16, LIMIT)


def table(folder: Path, **columns: Any) -> tuple[list[RawItem], list[RowProblem]]:
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    columns = {"image": [picture(n) for n in range(count)], "label": ["a"] * count, **columns}
    pq.write_table(pa.table(columns), folder / "s.parquet")
    return read(only(folder))


def test_ids_of_fixed_size(tmp_path: Path) -> None:
    ids = [UUID(int=n << 100 | 0xFF) for n in range(2)]
    raw = [one.bytes for one in ids]
    for name, column in {"uuid": pa.array(raw, pa.uuid()), "bytes": pa.array(raw, pa.binary(16))}.items():
        items, problems = table(tmp_path / name, id=column)
        assert ([item.item_id for item in items], problems) == ([str(one) for one in ids], [])
    items, _ = table(tmp_path / "text", id=pa.array([b"item-0001"], pa.binary(9)))
    assert items[0].item_id == "item-0001"
    items, _ = table(tmp_path / "padded", id=pa.array([b"item\0\0"], pa.binary(6)))
    assert items[0].item_id == "item"
    items, _ = table(tmp_path / "digest", id=pa.array([b"\xff" * 20], pa.binary(20)))
    assert items[0].item_id == "ff" * 20
    items, _ = table(tmp_path / "dictionary", id=pa.array(["x", "y"]).dictionary_encode())
    assert [item.item_id for item in items] == ["x", "y"]
    _, problems = table(tmp_path / "bad", id=pa.array([b"\xff\xfe", b"ok"], pa.binary()))
    assert [(problem.row, problem.reason) for problem in problems] == [(0, Reason.BAD_ID)]


SECONDS = WHEN.timestamp()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([int(SECONDS * 1e3)]),
        pa.array([int(SECONDS * 1e6)]),
        pa.array([int(SECONDS * 1e6) * 1000]),
        pa.array([SECONDS]),
        pa.array([SECONDS * 1e3]),
        pa.array([str(int(SECONDS * 1e3))]),
        pa.array(["1714566600.25"]),
        pa.array(["2024-05-01T12:30:00.25Z"]),
        pa.array(["2024-05-01 14:30:00.250+02:00"]),
        pa.array(["2024-05-01T12:30:00.250000123Z"]),
        pa.array([WHEN.replace(tzinfo=None)], pa.timestamp("ms")),
        pa.array([WHEN], pa.timestamp("ns", "America/New_York")),
        pa.array([WHEN], pa.timestamp("us", "+05:30")),
        pa.array([WHEN]).dictionary_encode(),
    ],
    ids=lambda column: f"{column.type}-{column[0]}",
)
def test_times_in_every_unit_and_zone(tmp_path: Path, column: Any) -> None:
    items, problems = table(tmp_path, time=column)
    assert not problems
    assert items[0].time == WHEN


def test_units_of_numbers_are_found_by_their_size() -> None:
    day = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    for value in (10**9, 10**12, 10**15, 10**18, 1e9, 1e12):
        assert fields.when(value) == day
    assert fields.when(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert fields.when(10**11 - 1) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=10**11 - 1)
    assert fields.when(float("nan")) is None
    for bad in (-1, float("inf"), True, 10**30, "noon", [1], "9" * 19 + "9"):
        with pytest.raises(RowError):
            fields.when(bad)
    with pytest.raises(RowError, match=r"'0001-01-01T00:00:00\+14:00' is outside the calendar$"):
        fields.when("0001-01-01T00:00:00+14:00")


def tar(folder: Path, *members: tuple[str, bytes]) -> ShardRef:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "s.tar", "w") as out:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return only(folder)


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_marks_before_text_are_no_part_of_it(tmp_path: Path, mark: str) -> None:
    ref = tar(
        tmp_path,
        ("a.png", picture()), ("a.cls", "кот".encode(mark)),
        ("b.png", picture()), ("b.txt", "кот\r\n".encode(mark)),
        ("c.png", picture()), ("c.json", '{"label": "кот", "attributes": {"hue": "red"}}'.encode(mark)),
    )  # fmt: skip
    items, problems = read(ref)
    assert not problems
    assert {item.class_name for item in items} == {"кот"}
    assert items[2].attributes == {"hue": "red", "path": "c.png"}


def test_several_dots_say_what_was_there(tmp_path: Path) -> None:
    ref = tar(
        tmp_path,
        ("22.05.png", picture()), ("22.05.cls", b"a"),
        ("b.rgb.png", picture()), ("b.depth.png", picture()), ("b.cls", b"a"),
        ("c.rgb.png", picture()), ("c.png", picture(1)), ("c.cls", b"a"),
        ("d.v2/e.png", picture()), ("d.v2/e.cls", b"a"),
        ("f.cls", b"a"),
    )  # fmt: skip
    items, problems = read(ref)
    assert [(item.row, item.image == picture(1)) for item in items] == [(2, True), (3, False)]
    assert [problem.reason for problem in problems] == [Reason.MISSING_IMAGE] * 3
    assert (
        "sample '22' has no image among .05.png, .05.cls; the key ends at the first dot" in problems[0].detail
    )
    assert "sample 'b' has no image among .rgb.png, .depth.png, .cls; the key" in problems[1].detail
    assert problems[2].detail == "sample 'f' has no image among .cls; expected one such as .jpg or .png"
    many = tar(tmp_path / "many", *((f"k.{n}.npy", b"") for n in range(5000)))
    (problem,) = read(many)[1]
    assert problem.detail.count(".npy") < 20


def test_repeated_members(tmp_path: Path) -> None:
    """The same bytes twice do no harm; other bytes under one name are refused rather than chosen from."""
    ref = tar(
        tmp_path,
        ("a.png", picture()), ("a.png", picture()), ("a.cls", b"x"),
        ("b.png", picture(1)), ("b.png", picture(2)), ("b.cls", b"x"),
        ("c.png", picture(3)), ("c.cls", b"x"), ("c.cls", b"y"),
        ("a.png", picture(4)), ("a.cls", b"x"),
    )  # fmt: skip
    items, problems = read(ref)
    assert [item.row for item in items] == [0]
    assert [problem.reason for problem in problems] == [Reason.DUPLICATE_ID] * 3
    assert "member 'b.png' comes twice, with different bytes" in problems[0].detail


def test_tars_without_anything_in_them(tmp_path: Path) -> None:
    empty = tar(tmp_path / "empty")
    left = tar(tmp_path / "left", ("._a.png", b"?"), (".DS_Store", b"?"))
    for ref, words in ((empty, "the tar has no members"), (left, "2 of a system or tool were passed over")):
        with pytest.raises(BadShard, match=words) as refusal:
            read(ref)
        assert refusal.value.reason is Reason.EMPTY_FILE


def test_a_compressed_tar_says_so_and_an_old_one_is_read(tmp_path: Path) -> None:
    ref = tar(tmp_path / "new", ("a.png", picture()), ("a.cls", b"x"))
    data = bytearray(Path(ref.uri).read_bytes())
    compressed = {"gzip": zlib.compress(bytes(data), wbits=31), "zstd": b"\x28\xb5\x2f\xfd" + bytes(508)}
    for folder, packed in compressed.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.tar").write_bytes(packed)
        with pytest.raises(BadShard, match=f"compressed with {folder}; land it uncompressed"):
            read(only(tmp_path / folder))
    for at in [start for start in range(0, len(data), 512) if data[start + 257 : start + 262] == b"ustar"]:
        data[at + 257 : at + 265] = bytes(8)
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "old").mkdir()
    (tmp_path / "old/s.tar").write_bytes(data)
    assert len(read(only(tmp_path / "old"))[0]) == 1


def test_a_number_that_is_none_is_a_missing_value(tmp_path: Path) -> None:
    """As pandas and NumPy write what a merge did not find."""
    nan = float("nan")
    items, problems = table(tmp_path, item_id=pa.array([7.0, nan]), time=pa.array([nan, 1_700_000_000.0]))
    assert not problems
    assert [item.item_id.rpartition("/")[2] for item in items] == ["7", "1"]
    assert [item.time is None for item in items] == [True, False]


@pytest.mark.parametrize("column", [pa.array([["a"], ["b"]]), pa.array([{"oid": "a"}, {"oid": "b"}])])
def test_an_id_of_several_parts_is_no_id(tmp_path: Path, column: Any) -> None:
    items, problems = table(tmp_path, item_id=column)
    assert ([problem.reason for problem in problems], items) == ([Reason.BAD_ID] * 2, [])


def packed(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return out.getvalue()


FIRST = (("a.png", picture(1)), ("a.cls", b"x"))
SECOND = (("b.png", picture(2)), ("b.cls", b"y"))


def with_damage(data: bytes) -> bytes:
    at = data.index(b"b.png")
    return data[:at] + b"?" + data[at + 1 :]


def with_a_hole(data: bytes) -> bytes:
    at = data.index(b"b.png")
    return data[:at] + bytes(512) + data[at:]


@pytest.mark.parametrize(
    "data",
    [
        packed(*FIRST) + packed(*SECOND),
        with_damage(packed(*FIRST, *SECOND)),
        with_a_hole(packed(*FIRST, *SECOND)),
    ],
    ids=["two tars", "a damaged header", "a block of zeros"],
)
def test_a_tar_that_ends_before_its_file_is_refused_not_read_in_part(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(
        BadShard, match=r"members end at byte .* and data follow at .*land the tars apart"
    ) as refusal:
        read(only(tmp_path))
    assert refusal.value.reason is Reason.CORRUPT_FILE
    with pytest.raises(ValueError, match=r"s\.tar cannot be read: .*members end at byte"):
        land_file(tmp_path / "inbox", tmp_path / "s.tar")  # what is refused later is not said to have landed
    assert not (tmp_path / "inbox").exists()
    (tmp_path / "s.tar").write_bytes(packed(*FIRST) + bytes(3 << 20))
    assert len(read(only(tmp_path))[0]) == 1


def test_a_caption_is_no_class(tmp_path: Path) -> None:
    """As tools write that download images: the text, and the same in JSON."""
    ref = tar(
        tmp_path,
        ("1.png", picture(1)), ("1.json", b'{"caption": "a cat", "url": "u"}'), ("1.txt", b"a cat\n"),
        ("2.png", picture(2)), ("2.json", b'{"caption": "a cat", "label": 3}'), ("2.txt", b"a cat"),
        ("3.png", picture(3)), ("3.json", b'{"caption": "a cat on a mat"}'), ("3.txt", b"cat"),
    )  # fmt: skip
    items, (problem,) = read(ref)
    assert [item.class_name for item in items] == ["3", "cat"]
    assert problem.reason is Reason.MISSING_LABEL
    assert "found .png, .json, .txt with ['caption', 'url']: expected key.cls" in problem.detail


def test_a_sample_of_two_images_is_refused_rather_than_chosen_from(tmp_path: Path) -> None:
    ref = tar(tmp_path, ("a.jpg", picture(1)), ("a.png", picture(2)), ("a.cls", b"x"), *SECOND)
    items, (problem,) = read(ref)
    assert [item.class_name for item in items] == ["y"]
    assert problem.detail.endswith("sample 'a' has 2 images (.jpg, .png); keep one of each key")


def test_a_tar_of_class_folders_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(packed(("zoo/cats/a.png", picture())))
    with pytest.raises(
        ValueError, match=r"no class name or label; found \.png: .*unpack it and land the folder"
    ):
        check_rows(tmp_path / "s.tar", "tar")


@pytest.mark.parametrize(
    ("start", "what"), [(b"PK\3\4", "a zip"), (b"Rar!\x1a", "a rar"), (b"7z\xbc\xaf", "a 7z")]
)
def test_another_archive_says_what_it_is(tmp_path: Path, start: bytes, what: str) -> None:
    (tmp_path / "s.tar").write_bytes(start + bytes(1020))
    with pytest.raises(ValueError, match=f"this is {what}.*, no tar; unpack it, and land the folder"):
        check_rows(tmp_path / "s.tar", "tar")


def test_labels_of_bytes_are_text_or_refused(tmp_path: Path) -> None:
    """Never digits in place of a name: `caf\xe9` in Latin-1 would be the class 636166e9."""
    items, problems = table(tmp_path / "a", label=pa.array([b"caf\xe9", "café".encode()]))
    assert [item.class_name for item in items] == ["café"]
    assert [(problem.row, problem.reason) for problem in problems] == [(0, Reason.BAD_LABEL)]
    items, problems = table(tmp_path / "b", label=pa.array([b"cat\0\0", b"horse"], pa.binary(5)))
    assert ([item.class_name for item in items], problems) == (["cat", "horse"], [])


OTHERS = {
    "a.parquet": (b"ARROW1\0\0", "an Arrow file: give it a name that ends in .arrow"),
    "b.arrow": (b"PAR1", "a Parquet file: give it a name that ends in .parquet"),
    "c.feather": (b"FEA1" + bytes(99), "a Feather file of version 1: write it again"),
    "d.parquet": (b"PARE" + bytes(99), "an encrypted Parquet file"),
    "e.parquet": (b"\x1f\x8b" + bytes(99), "compressed with gzip: decompress it"),
    "f.arrow": (b"PK\3\4" + bytes(99), "a zip: unpack it"),
    "g.npz": (b"hello", "File is not a zip file"),
    "h.jpg": (b"", "is an image: put it into a folder of its class"),
    "i.zip": (b"", "is an archive: unpack it"),
    "j.tar.gz": (b"", "is compressed: decompress it"),
    "k.csv": (b"", "as `metadata.csv` or `metadata.jsonl` with `file_name` and `label`"),
    "l.npy": (b"", "an .npz with an array `vector`"),
    "m.doc": (b"", "expected a folder, or a name ending in .parquet"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_says_what_to_do(tmp_path: Path, name: str) -> None:
    data, seen = OTHERS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(seen)):
        ingest(tmp_path / name, tmp_path / "inbox")
    assert not (tmp_path / "inbox").exists()


@pytest.mark.parametrize(
    "name", ["a" * 1_000_000, "b/" * 400_000 + "x", "a\udcff" * 1000], ids=["long", "deep", "bytes"]
)
def test_a_name_of_a_member_makes_no_row_of_the_quarantine_large(tmp_path: Path, name: str) -> None:
    """It is stored, listed and sent with every look at the quarantine."""
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo(f"{name}.png")
        member.size = len(picture())
        tar.addfile(member, io.BytesIO(picture()))
    (problem,) = read(only(tmp_path))[1]
    assert problem.reason == Reason.MISSING_LABEL
    assert len(problem.detail.encode()) < 4000
    assert problem.detail.startswith(name[0])
    assert "label" in problem.detail or "class" in problem.detail
