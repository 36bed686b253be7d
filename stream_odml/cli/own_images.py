"""What a user's own images are: how many, of which classes, how large. Nothing is decoded, written or landed."""

from __future__ import annotations

import hashlib
import io
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stream_odml.ingest import fields
from stream_odml.ingest.folder_scan import class_of, has_class, scan_folder
from stream_odml.ingest.reading import RawItem, read_folder, read_shard
from stream_odml.ingest.reasons import BadShard, RowError
from stream_odml.ingest.shard import FILE_FORMATS, ManifestFile, ShardRef, format_of, make_shard_id

SAMPLE = 200
"""Maximum images whose size is read."""


@dataclass(frozen=True)
class OwnImages:
    """What was seen: images of each class, shorter sides (pixels) of a sample of them, and what is passed over."""

    by_class: Counter[str]
    sides: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Return the number of images that have a class."""
        return self.by_class.total()

    @property
    def median_side(self) -> int:
        """Return the median shorter side in pixels, or 0 where no size could be read."""
        return int(statistics.median(self.sides)) if self.sides else 0

    def in_words(self) -> str:
        """Return one line for people."""
        fewest, most = min(self.by_class.values()), max(self.by_class.values())
        each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        return f"{len(self.by_class)} classes, {self.images} images ({each} a class){self._sides_in_words()}"

    def _sides_in_words(self) -> str:
        if not self.sides:
            return ""
        smallest, largest = min(self.sides), max(self.sides)
        if smallest == largest:
            return f", shorter side {smallest} pixels"
        return f", shorter sides {smallest} to {largest} pixels (median {self.median_side})"


def look_at(path: Path) -> OwnImages:
    """Count the images of a folder, Parquet or Arrow file, or tar, as `ingest` would land them. Raises ValueError where
    no image has a class."""
    _check_there(path)
    if not path.is_dir():
        return _counted(path, ())
    scan = scan_folder(path)
    tables = tuple(file for file in scan.files if format_of(file.path) in FILE_FORMATS.values())
    if tables:
        return _counted(path, scan.notes)
    files = [file for file in scan.files if has_class(file)]
    sample = [path / file.path for file in files[:: max(1, len(files) // SAMPLE)]][:SAMPLE]
    sides = tuple(side for one in sample if (side := _shorter_side(one)))
    names = [name for file in files if (name := _class_name(file))]
    if not names:
        raise ValueError(f"none of the class folders of {path} has a name that can be a class: rename them")
    return OwnImages(Counter(names), sides, scan.notes)


def _class_name(file: ManifestFile) -> str | None:
    """Return the class as it will be stored; None for one that is quarantined."""
    try:
        return fields.class_name(class_of(file))
    except RowError:
        return None


def raw_items(path: Path) -> Iterator[RawItem]:
    """Yield every usable row of a folder, Parquet or Arrow file, or tar, its image still encoded. What holds vectors or
    labels in a folder is passed over, unless nothing there has an image."""
    _check_there(path)
    found = read_folder(path, scan_folder(path).files) if path.is_dir() else read_shard(_reference(path))
    images = others = 0
    try:
        for item in found:
            if not isinstance(item, RawItem):
                continue
            if item.image:
                images += 1
                yield item
            elif path.is_dir():
                others += 1
            else:
                raise _no_images(path)
    except BadShard as error:
        raise ValueError(f"{path} cannot be read; none of it can be used: {error.detail}") from error
    if others and not images:
        raise _no_images(path)


def _no_images(path: Path) -> ValueError:
    return ValueError(
        f"{path} holds no images, but vectors or labels; take vectors over with "
        f"`stream-odml adopt {shlex.quote(str(path))} --root ROOT`"
    )


def first_image(path: Path) -> Path | None:
    """Return an image of a folder that will be landed and can be opened, as an example; None for a table or a tar."""
    if not path.is_dir():
        return None
    files = [path / file.path for file in scan_folder(path).files if has_class(file)]
    return next((file for file in files[:SAMPLE] if _shorter_side(file)), None)


def _check_there(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a Parquet file, a tar, or a folder of class folders")
    if not path.is_dir() and format_of(path.name) not in FILE_FORMATS.values():
        raise ValueError(
            f"{path} is no folder; name a folder of class folders, or a file that ends in {', '.join(FILE_FORMATS)}"
        )


def _counted(path: Path, notes: tuple[str, ...]) -> OwnImages:
    by_class: Counter[str] = Counter()
    sides: list[int] = []
    for item in raw_items(path):
        by_class[item.class_name] += 1
        if len(sides) < SAMPLE and (side := _shorter_side(item.image)):
            sides.append(side)
    if not by_class:
        raise ValueError("none of its rows can be used; expected the columns `image` and `class_name`")
    return OwnImages(by_class, tuple(sides), notes)


def _shorter_side(image: Path | bytes) -> int:
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return min(opened.size)
    except Exception:  # Pillow's parsers raise nearly everything; indexing will say what is wrong with it
        return 0


def _reference(path: Path) -> ShardRef:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = path.stat()
    shard_id = make_shard_id(path.name, digest)
    return ShardRef(
        shard_id,
        path.name,
        str(path.resolve()),
        format_of(path.name),
        status.st_size,
        status.st_mtime_ns,
        shard_id,
    )
