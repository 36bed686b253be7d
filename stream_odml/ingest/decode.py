"""Bytes to pixels: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and, with the extra `heic`, HEIC.

Of several frames the first counts; any colour mode and any EXIF rotation will do.

Invariant: no pixel is decoded before the declared size has been checked, and what cannot be decoded is a
`BadImage` with a reason, never a crash or a warning.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stream_odml.ingest.passed_over import HEIC_REMEDY, reads_heic
from stream_odml.ingest.reasons import BadImage, Reason

Pixels = NDArray[np.uint8]
T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"})
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
"""Of a JPEG: what follows 0xff and is neither a stuffed byte nor a restart between its data."""
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = (0x01, 0xD8)
_FRAMES_OF_ONE_SCAN = (0xC0, 0xC1, 0xC3)
"""Not progressive: each scan holds its part of every pixel."""
MAX_SCANS = 100
MAX_TIFF_VALUES = 1 << 17
_BYTE_ORDERS: Mapping[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
_TIFF_PARTS = (273, 279, 324, 325)
"""Tags with a value for each strip or tile."""
_TIFF_BYTES = (1, 2, 7)
"""Types whose values Pillow leaves as they are."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, size: int, max_pixels: int) -> Pixels:
    """Decode to RGB [size, size, 3] uint8: upright, on white, shorter side scaled to `size`, centre cropped.

    An image that declares more than `max_pixels` pixels is refused undecoded. Raises BadImage (empty_image,
    not_an_image, image_bomb, truncated_image, corrupt_image, out_of_memory).
    """
    _check_scans(data)
    return _read(data, lambda image: _square(image, size), max_pixels)


def _check_scans(data: bytes) -> None:
    """Raise BadImage for a progressive JPEG of more scans than any encoder writes: each goes over all pixels, and some
    hundred bytes are enough for one."""
    if not data.startswith(b"\xff\xd8"):
        return
    at, scans = 2, 0
    while (found := _MARKER.search(data, at)) is not None:
        kind, at = found[1][0], found.end()
        if kind == _END or kind in _FRAMES_OF_ONE_SCAN:
            return
        scans += kind == _SCAN
        if scans > MAX_SCANS:
            raise BadImage(Reason.IMAGE_BOMB, f"a JPEG of more than {MAX_SCANS} scans")
        if kind not in _WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")


def declared_pixels(data: bytes, max_pixels: int) -> int:
    """Return width x height as the header declares them, decoding nothing. Raises BadImage as `decode_image` does."""
    return _read(data, lambda image: image.size[0] * image.size[1], max_pixels)


def _read(data: bytes, use: Callable[[Image.Image], T], max_pixels: int) -> T:
    if not data:
        raise BadImage(Reason.EMPTY_IMAGE, "no bytes")
    _hush_pillow()
    _check_webp(data, max_pixels)
    _check_tiff(data)
    try:
        try:
            return _opened(data, use, max_pixels)
        except ValueError:
            # Text and colour profiles of any length say nothing about the pixels; Pillow refuses long ones.
            if (pixels_only := _without_notes(data)) is None:
                raise
            return _opened(pixels_only, use, max_pixels)
    except Image.DecompressionBombError as error:
        raise BadImage(Reason.IMAGE_BOMB, str(error)) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except MemoryError as error:
        raise BadImage(Reason.OUT_OF_MEMORY, f"{len(data)} bytes of image need more than there is") from error
    except BadImage:
        raise
    except Exception as error:  # Pillow's parsers raise nearly everything, from SyntaxError to KeyError
        is_cut = _is_cut(data) or "truncated" in str(error)  # a cut file may end like a whole one by chance
        reason = Reason.TRUNCATED_IMAGE if is_cut else Reason.CORRUPT_IMAGE
        raise BadImage(reason, f"{type(error).__name__}: {str(error)[:200]}") from error


def _opened(data: bytes, use: Callable[[Image.Image], T], max_pixels: int) -> T:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        _check_pixels(*image.size, max_pixels)
        return use(image)


@cache
def _formats() -> tuple[str, ...]:
    if not reads_heic():
        return FORMATS
    import_module("pillow_heif").register_heif_opener()
    return (*FORMATS, "HEIF")


def _without_notes(data: bytes) -> bytes | None:
    """Return the chunks of a PNG that make its pixels; None for anything else."""
    if not data.startswith(_PNG_START):
        return None
    parts, at = [_PNG_START], len(_PNG_START)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in _PIXEL_CHUNKS:
            parts.append(data[at:end])
        at = end
    return b"".join(parts)


def encode_image(pixels: Pixels, format: Literal["WEBP", "JPEG", "PNG"] = "WEBP") -> bytes:
    """Return a small file of pixels [H, W, 3] uint8, for a thumbnail. ValueError for another shape or type."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format, quality=80)
    return out.getvalue()


def _hush_pillow() -> None:
    """Silence Pillow's warnings: the answer to an odd file is an exception or pixels, not a warning.
    `catch_warnings` is not safe with threads, so one filter for Pillow's modules alone is kept in place."""
    ours = r"PIL\."
    known = (getattr(entry[3], "pattern", entry[3]) for entry in warnings.filters if entry[0] == "ignore")
    if ours not in known:
        warnings.filterwarnings("ignore", module=ours)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage(Reason.IMAGE_BOMB, f"declares {width} x {height} pixels, at most {max_pixels}")


def _check_webp(data: bytes, max_pixels: int) -> None:
    """Raise BadImage for a WebP that declares too many pixels: Pillow allocates them while it opens the file."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    _check_pixels(width, height, max_pixels)


def _check_tiff(data: bytes) -> None:
    """Raise BadImage for a TIFF whose directory lists more strips, tiles or other values than any image has parts:
    Pillow makes objects of each while it opens the file, whatever its size in pixels."""
    order = _BYTE_ORDERS.get(data[:2])
    if order is None or not {42, 43} & set(data[2:4]):
        return
    for count_bytes, entry_bytes, width in ((2, 12, 4), (8, 20, 8)) if 43 in data[2:4] else ((2, 12, 4),):
        at = int.from_bytes(data[width : 2 * width], order)
        entries = int.from_bytes(data[at : at + count_bytes], order)
        for place in range(at + count_bytes, at + count_bytes + entries * entry_bytes, entry_bytes):
            part = data[place : place + entry_bytes]
            tag, kind = (int.from_bytes(part[side : side + 2], order) for side in (0, 2))
            count = int.from_bytes(part[4 : 4 + width], order)
            if count > MAX_TIFF_VALUES and (tag in _TIFF_PARTS or kind not in _TIFF_BYTES):
                raise BadImage(Reason.IMAGE_BOMB, f"a TIFF of {count} strips, tiles or values of one tag")
            if not part:
                break


def _square(image: Image.Image, size: int) -> Pixels:
    if image.format in ("JPEG", "MPO"):
        # The codec halves the image while decoding, as long as it stays larger.
        image.draft(None, (size, size))
    image.load()
    turn = _TURNS.get(_orientation(image))
    small = _scaled(_plain(image), size)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, (255, 255, 255, 255)), small)
    if small.mode != "RGB":
        small = small.convert("RGB")
    if turn is not None:
        small = small.transpose(turn)
    return np.array(small, dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block is no reason to refuse the pixels
        return 1


def _plain(image: Image.Image) -> Image.Image:
    """Return an image of mode L, RGB or RGBA."""
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        levels = np.clip(wide, 0, min(65_535, np.iinfo(wide.dtype).max)) >> 8
        return Image.fromarray(levels.astype(np.uint8))
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_floats(values: NDArray[np.float32]) -> Image.Image:
    """Return grey levels of floats in 0..1, or in 0..255 where any is above 1."""
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    scale = 255.0 if finite.max(initial=0.0) <= 1 else 1.0
    return Image.fromarray(np.clip(finite * scale, 0, 255).astype(np.uint8))


def _scaled(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box, reducing_gap=2.0)


def _unidentified(data: bytes) -> BadImage:
    if _is_heic(data) and not reads_heic():
        return BadImage(Reason.NOT_AN_IMAGE, f"a HEIC image; {HEIC_REMEDY}")
    known = (b"\xff\xd8\xff", _PNG_START, b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
    is_container = data[4:8] == b"ftyp" and (data[8:12] in (b"avif", b"avis") or _is_heic(data))
    is_other_riff = data[:4] == b"RIFF" and data[8:12] not in (b"WEBP", b"")
    if is_container or (data.startswith(known) and not is_other_riff):
        reason = Reason.TRUNCATED_IMAGE if _is_cut(data) else Reason.CORRUPT_IMAGE
        return BadImage(reason, f"starts as an image and is none: {data[:16]!r}, {len(data)} bytes")
    expected = ", ".join(_formats())
    return BadImage(Reason.NOT_AN_IMAGE, f"starts with {data[:16]!r}; expected one of {expected}")


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def _is_cut(data: bytes) -> bool:
    """Return whether the file stops before the end that its own format declares."""
    tail = data.rstrip(b"\0")[-16:]
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in tail
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-24:]
    if data.startswith(b"GIF8"):
        return not tail.endswith(b";")
    if data.startswith((b"RIFF", b"BM")):
        at = 4 if data.startswith(b"RIFF") else 2
        declared = int.from_bytes(data[at : at + 4], "little") + (8 if at == 4 else 0)
        return len(data) < declared or len(data) < 16
    return False
