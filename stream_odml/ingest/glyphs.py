"""An endless stream of visual categories that needs no data: characters from the fonts that matplotlib ships.

A category is a character (later: a pair of them); its images are that character in the faces that have it (sans, serif,
mono; upright, slanted; regular, bold), slightly deformed, thicker or thinner, shifted, in other colours, noisy.
Invariant: category k and its images depend on (seed, k) only. Font files are read where matplotlib has them.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_FACES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral")
"""How the names of font files begin, in all their styles."""
_LOOK = 16
_TOO_CLOSE = 0.9
_DRAWN = 48


class GlyphCategory(NamedTuple):
    """A category: its name (unique in the stream) and its images, PNG bytes."""

    class_name: str
    images: list[bytes]


def glyph_categories(seed: int, images: int = 20, size: int = 40, start: int = 0) -> Iterator[GlyphCategory]:
    """Yield categories `start`, `start`+1, … without end: each character once, then pairs of them. `images` per
    category, `size` pixels a side. Raises ValueError when the fonts are not where matplotlib keeps them."""
    for index, text in enumerate(_texts(seed)):
        if index >= start:
            random = np.random.default_rng((seed, 7, index))
            yield GlyphCategory(_name(text), [_image(text, size, random) for _ in range(images)])


def _texts(seed: int) -> Iterator[str]:
    random = np.random.default_rng((seed, 5))
    characters = sorted(_faces_of())
    singles: list[str] = []
    for character in _distinct([characters[at] for at in random.permutation(len(characters))]):
        singles.append(character)
        yield character
    seen: set[str] = set()
    while True:
        pair = "".join(singles[index] for index in random.integers(len(singles), size=2))
        if pair not in seen:
            seen.add(pair)
            yield pair


_BLOCK = 64
"""Characters that are compared with each other at once."""


def _distinct(characters: list[str]) -> Iterator[str]:
    """Leave out what is blank or looks like one that came before (Latin A and Greek Alpha)."""
    kept_ND = np.empty((0, _LOOK * _LOOK), np.float32)
    for start in range(0, len(characters), _BLOCK):
        seen = ((char, _look(char)) for char in characters[start : start + _BLOCK])
        looks = [(char, look) for char, look in seen if look is not None]
        if not looks:
            continue
        looks_BD = np.stack([look for _, look in looks])
        is_new = (looks_BD @ kept_ND.T).max(axis=1, initial=0.0) <= _TOO_CLOSE
        within_BB = looks_BD @ looks_BD.T
        for at in range(len(looks)):
            is_new[at] &= not (within_BB[at, :at] > _TOO_CLOSE)[is_new[:at]].any()
        kept_ND = np.concatenate((kept_ND, looks_BD[is_new]))
        yield from (char for (char, _), new in zip(looks, is_new, strict=True) if new)


def _name(text: str) -> str:
    return " + ".join(f"U+{ord(char):04X} {unicodedata.name(char).lower()}" for char in text)


@lru_cache(maxsize=1)
def _faces_of() -> dict[str, tuple[str, ...]]:
    """Return characters that have a name, and the font files that draw each."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.ttf")):
        if not path.stem.startswith(_FACES):
            continue
        for code in FT2Font(str(path)).get_charmap():
            char = chr(code)
            if unicodedata.category(char)[0] in "LNPS" and bool(unicodedata.name(char, "")):
                faces.setdefault(char, []).append(str(path))
    if not faces:
        raise ValueError(f"no fonts in {folder}: reinstall matplotlib with its data files")
    return {char: tuple(paths) for char, paths in faces.items()}


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def _drawn(text: str, path: str) -> Image.Image | None:
    """Return white ink on black, cropped to the ink; None where the face draws nothing."""
    font = _font(path, _DRAWN)
    left, top, right, bottom = font.getbbox(text)
    if right - left < 1 or bottom - top < 1 or right - left > 8 * _DRAWN:
        return None
    sheet = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(sheet).text((1 - left, 1 - top), text, 255, font)
    box = sheet.getbbox()
    return sheet.crop(box) if box else None


def _look(character: str) -> NDArray[np.float32] | None:
    """Return how a character looks, as a unit vector; its proportions stay."""
    ink = _drawn(character, _faces_of()[character][0])
    if ink is None or max(ink.size) < _DRAWN // 4:
        return None
    side = max(ink.size)
    sheet = Image.new("L", (side, side))
    sheet.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    small = sheet.resize((_LOOK, _LOOK), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.6))
    look = np.asarray(small, np.float32).reshape(-1)
    return look / np.linalg.norm(look)


def _image(text: str, size: int, random: np.random.Generator) -> bytes:
    shared = [path for path in _faces_of()[text[0]] if all(path in _faces_of()[char] for char in text)]
    faces = shared or [_faces_of()[text[0]][0]]
    ink = _drawn(text, faces[random.integers(len(faces))]) or _drawn(text, _faces_of()[text[0]][0])
    assert ink is not None  # the first face draws it: _look has seen it
    mask = np.asarray(_deform(ink, size, random), np.float32) / 255.0
    paper, colour = _colours(random)
    grain = random.normal(0.0, random.uniform(4.0, 18.0), (size, size, 1)).astype(np.float32)
    pixels = paper + (colour - paper) * mask[:, :, None] + grain
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _deform(ink: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Place the ink in a square by a small random affine map (output to input, as Pillow wants it); vary its stroke."""
    scale = max(ink.size) / (size * random.uniform(0.55, 0.85))
    turn, shear = random.normal(0.0, 0.12), random.normal(0.0, 0.12)
    stretch = np.exp(random.normal(0.0, 0.1, 2))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotation @ np.array([[1.0, shear], [0.0, 1.0]]) * (scale * stretch)[:, None]
    centre = np.full(2, size / 2) + random.normal(0.0, size * 0.05, 2)
    offset = np.array(ink.size) / 2 - matrix @ centre
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    shrink = ink.filter(ImageFilter.GaussianBlur(0.4 * scale)) if scale > 1.5 else ink
    placed = shrink.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    stroke = random.random()
    if stroke < 0.2:
        placed = placed.filter(ImageFilter.MaxFilter(3))
    return placed.filter(ImageFilter.GaussianBlur(random.uniform(0.0, 0.9)))


def _colours(random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return paper and ink [3], at least 70 grey levels apart; one in four is light on dark."""
    paper = random.uniform(150.0, 255.0, 3)
    ink = np.minimum(random.uniform(0.0, 130.0, 3), paper - 70.0)
    if random.random() < 0.25:
        paper, ink = ink, paper
    return paper.astype(np.float32), ink.astype(np.float32)
