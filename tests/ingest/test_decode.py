"""Any image to RGB of one size; the oracle is a picture whose four corners are known."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from stream_odml.config.service import DEFAULT_MAX_PIXELS as LIMIT
from stream_odml.ingest.decode import decode_image, encode_image
from stream_odml.ingest.reasons import BadImage, Reason
from tests.ingest.pictures import FORMATS, bombs, encoded, picture

RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 180, 40), (40, 40, 210), (120, 120, 120)


def quarters(size: int = 32) -> Image.Image:
    """Red, green / blue, grey."""
    image = Image.new("RGB", (size, size), RED)
    half = size // 2
    image.paste(GREEN, (half, 0, size, half))
    image.paste(BLUE, (0, half, half, size))
    image.paste(GREY, (half, half, size, size))
    return image


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    near, far = len(pixels) // 4, len(pixels) * 3 // 4
    return [
        tuple(int(v) for v in pixels[y, x]) for y, x in ((near, near), (near, far), (far, near), (far, far))
    ]


def close(seen: list[tuple[int, ...]], expected: list[tuple[int, ...]], by: int = 12) -> bool:
    return bool(np.abs(np.array(seen) - np.array(expected)).max() <= by)


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_gives_the_picture(format: str) -> None:
    pixels = decode_image(encoded(quarters(), format), 16, LIMIT)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert close(corners(pixels), [RED, GREEN, BLUE, GREY])


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("P", "GIF"), ("P", "PNG"), ("LA", "PNG"), ("L", "BMP")],
)
def test_modes_agree_with_pillow_s_own_conversion(mode: str, format: str) -> None:
    image = quarters().convert(mode)
    assert close(
        corners(decode_image(encoded(image, format), 32, LIMIT)),
        corners(np.asarray(image.convert("RGB"))),
    )


def test_cmyk_jpeg() -> None:
    image = quarters().convert("CMYK")
    assert close(
        corners(decode_image(encoded(image, "JPEG", quality=95), 32, LIMIT)),
        corners(np.asarray(image.convert("RGB"))),
    )


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    wide = np.array([[0, 10_000], [30_000, 65_535]], np.uint16).repeat(16, 0).repeat(16, 1)
    pixels = decode_image(encoded(Image.fromarray(wide), "PNG"), 32, LIMIT)
    assert [value[0] for value in corners(pixels)] == [0, 39, 117, 255]


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_lies_on_white(format: str) -> None:
    image = quarters().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 16, 16))
    pixels = decode_image(
        encoded(image, format, **({"lossless": True} if format == "WEBP" else {})), 32, LIMIT
    )
    assert close(corners(pixels), [(255, 255, 255), GREEN, BLUE, GREY])


def test_gif_first_frame_and_palette_transparency() -> None:
    out = io.BytesIO()
    quarters().save(out, "GIF", save_all=True, append_images=[Image.new("RGB", (32, 32), "white")])
    assert close(corners(decode_image(out.getvalue(), 32, LIMIT)), [RED, GREEN, BLUE, GREY])
    paletted = quarters().convert("P", palette=Image.Palette.ADAPTIVE)
    data = encoded(paletted, "PNG", transparency=bytes([255] * 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(corners(decode_image(data, 32, LIMIT)), [RED, GREEN, BLUE, GREY])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    forth = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what the camera did: the inverse Transpose
    image = quarters()
    if orientation > 1:
        image = image.transpose(Image.Transpose(forth[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert close(
        corners(decode_image(encoded(image, "JPEG", exif=exif, quality=95), 32, LIMIT)),
        [RED, GREEN, BLUE, GREY],
    )


def test_shorter_side_is_scaled_and_the_centre_kept() -> None:
    image = Image.new("RGB", (96, 32), "black")
    image.paste(quarters(), (32, 0))
    assert close(corners(decode_image(encoded(image, "PNG"), 16, LIMIT)), [RED, GREEN, BLUE, GREY])
    tall = Image.new("RGB", (32, 3000), "black")
    assert decode_image(encoded(tall, "PNG"), 16, LIMIT).shape == (16, 16, 3)


@pytest.mark.parametrize("format", FORMATS)
def test_declared_size_is_refused_before_decoding(format: str) -> None:
    with pytest.raises(BadImage) as refusal:
        decode_image(bombs()[format], 16, LIMIT)
    assert refusal.value.reason is Reason.IMAGE_BOMB
    with pytest.raises(BadImage, match="declares 12 x 10 pixels, at most 119"):
        decode_image(picture(format=format), 16, max_pixels=119)
    decode_image(picture(format=format), 16, max_pixels=120)


@pytest.mark.parametrize("format", FORMATS)
def test_cut_anywhere_is_refused_and_never_crashes(format: str) -> None:
    whole = picture(3, format, (40, 40))
    reasons = set()
    for length in range(1, len(whole) - 2, max(1, len(whole) // 60)):
        try:
            pixels = decode_image(whole[:length], 16, LIMIT)
        except BadImage as error:
            reasons.add(error.reason)
        else:  # only a check sum or the trailer is missing
            assert (pixels == decode_image(whole, 16, LIMIT)).all()
    assert reasons <= {Reason.TRUNCATED_IMAGE, Reason.NOT_AN_IMAGE, Reason.CORRUPT_IMAGE}


def test_noise_is_refused_or_decoded_but_nothing_else() -> None:
    random = np.random.default_rng(5)
    for turn in range(300):
        data = bytearray(picture(turn, FORMATS[turn % 5], (20, 20)))
        for place in random.integers(0, len(data), 12):
            data[place] = random.integers(256)
        with contextlib.suppress(BadImage):
            assert decode_image(bytes(data), 8, LIMIT).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_image"),
        (b"hello", "not_an_image"),
        (b"\0" * 99, "not_an_image"),
        (b"RIFF\0\0\0\0WAVE", "not_an_image"),
    ],
)
def test_what_is_no_image(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as refusal:
        decode_image(data, 16, LIMIT)
    assert refusal.value.reason == reason


def test_threads_decode_alike() -> None:
    data = encoded(quarters(200), "JPEG")
    expected, seen = decode_image(data, 24, LIMIT), []
    threads = [threading.Thread(target=lambda: seen.append(decode_image(data, 24, LIMIT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all((pixels == expected).all() for pixels in seen)


def test_thumbnails_come_back() -> None:
    pixels = np.asarray(quarters())
    assert (decode_image(encode_image(pixels, "PNG"), 32, LIMIT) == pixels).all()
    small = encode_image(pixels)
    assert len(small) < 1000
    assert close(corners(decode_image(small, 32, LIMIT)), [RED, GREEN, BLUE, GREY], by=25)
    with pytest.raises(ValueError, match="uint8"):
        encode_image(pixels.astype(np.float32))
