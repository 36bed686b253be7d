"""Seam 26: an image is known by its bytes under any usual name; what a landing leaves behind is counted and named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stream_odml.config.service import DEFAULT_MAX_PIXELS as LIMIT
from stream_odml.ingest import decode, passed_over
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.landing import land_file
from stream_odml.ingest.passed_over import describe_passed_over, is_landable
from stream_odml.ingest.reasons import BadImage, Reason
from tests.ingest.helpers import land_folder, only, read
from tests.ingest.pictures import encoded, picture

JPEG_NAMES = ("jpg", "jpeg", "jpe", "jfif", "pjpeg", "pjp", "JFIF", "JPE")


def halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 32))
    return image.convert(mode)


@pytest.mark.parametrize("suffix", JPEG_NAMES)
def test_every_name_of_jpeg_in_a_folder_and_in_a_tar(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "zoo/cats").mkdir(parents=True)
    (tmp_path / f"zoo/cats/a.{suffix}").write_bytes(picture(format="JPEG"))
    land_folder(tmp_path / "folder-inbox", tmp_path / "zoo")
    with tarfile.open(tmp_path / "zoo.tar", "w") as tar:
        for name, data in ((f"a.{suffix}", picture(format="JPEG")), ("a.cls", b"cats")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    land_file(tmp_path / "tar-inbox", tmp_path / "zoo.tar")
    for inbox in ("folder-inbox", "tar-inbox"):
        items, problems = read(only(tmp_path / inbox))
        assert ([item.class_name for item in items], problems) == (["cats"], [])


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        *(("TIFF", mode, {}) for mode in ("RGB", "RGBA", "CMYK", "P")),
        *(("TIFF", "RGB", {"compression": how}) for how in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")),
        ("AVIF", "RGB", {}),
        ("AVIF", "RGBA", {}),
        ("MPO", "RGB", {}),
    ],
)
def test_further_formats_give_their_colours(format: str, mode: str, options: dict[str, object]) -> None:
    pixels = decode_image(encoded(halves(mode), format, **options), 32, LIMIT).astype(int)
    assert np.abs(pixels[16, 4] - (255, 0, 0)).max() < 60
    assert np.abs(pixels[16, 28] - (0, 0, 255)).max() < 60


def test_a_tiff_of_floats_or_of_sixteen_bits_keeps_its_contrast() -> None:
    grey = np.repeat(np.linspace(0, 1, 32, dtype=np.float32)[None], 32, axis=0)
    for values in (grey, grey * 255, (grey * 65_535).astype(np.uint16)):
        pixels = decode_image(encoded(Image.fromarray(values), "TIFF"), 32, LIMIT)
        assert pixels[0, 0, 0] < 10
        assert pixels[0, -1, 0] > 245


@pytest.mark.parametrize("format", ["TIFF", "AVIF"])
def test_further_formats_obey_the_pixel_limit_and_survive_cuts(format: str) -> None:
    whole = picture(3, format, (40, 40))
    with pytest.raises(BadImage) as refusal:
        decode_image(whole, 16, max_pixels=1599)
    assert refusal.value.reason is Reason.IMAGE_BOMB
    reasons = set()
    for length in range(1, len(whole) - 2, max(1, len(whole) // 40)):
        try:
            decode_image(whole[:length], 16, LIMIT)
        except BadImage as error:
            reasons.add(error.reason)
    assert reasons <= {Reason.TRUNCATED_IMAGE, Reason.NOT_AN_IMAGE, Reason.CORRUPT_IMAGE}


def test_heic_without_its_plugin_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "reads_heic", lambda: False)
    decode._formats.cache_clear()
    with pytest.raises(BadImage, match=r"a HEIC image; .*pip install 'stream-odml\[heic\]'"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), 16, LIMIT)
    decode._formats.cache_clear()


def test_heic_with_its_plugin() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    pixels = decode_image(encoded(halves(), "HEIF"), 32, LIMIT).astype(int)
    assert np.abs(pixels[16, 4] - (255, 0, 0)).max() < 60


def test_what_is_passed_over_is_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed_over, "reads_heic", lambda: False)
    names = ["b.heic", "a.HEIC", "x/notes.txt", "README", "m.mp4", "n.mp4", "o.mp4", "p.mp4"]
    assert not any(is_landable(name) for name in names)
    line = describe_passed_over(names)
    assert line is not None
    assert line.startswith(
        "8 files passed over: 4 .mp4 (m.mp4, n.mp4, o.mp4 and 1 more), 2 .heic (a.HEIC, b.heic), "
    )
    assert "1 without suffix (README)" in line
    assert line.endswith("wherever images are decoded")
    assert describe_passed_over([]) is None
    assert describe_passed_over(["a\x1b[31m.txt"]) == "1 file passed over: 1 .txt (a\\x1b[31m.txt)"
    many = describe_passed_over([f"f.s{n}" for n in range(30)])
    assert many is not None
    assert "22 of other kinds" in many
    monkeypatch.setattr(passed_over, "reads_heic", lambda: True)
    assert is_landable("b.heic")
    assert is_landable("a.jfif")
    assert is_landable("part.parquet")
