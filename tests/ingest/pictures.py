"""Small images for tests, in every format, from a seed."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def picture(seed: int = 0, format: str = "PNG", size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    """An encoded image of random blocks."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)
    return encoded(image, format)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The image as a file of a format."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png_bomb(width: int = 31_623, height: int = 31_623) -> bytes:
    """A PNG of a few bytes that declares 10^9 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bombs() -> dict[str, bytes]:
    """One file a format that declares far more pixels than it holds."""
    jpeg = bytearray(picture(format="JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    gif = bytearray(picture(format="GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    bmp = bytearray(picture(format="BMP"))
    bmp[18:26] = struct.pack("<ii", 31_623, 31_623)
    webp = bytearray(picture(format="WEBP"))
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)
    files = {"JPEG": jpeg, "GIF": gif, "BMP": bmp, "WEBP": webp}
    return {"PNG": png_bomb(), **{name: bytes(data) for name, data in files.items()}}
