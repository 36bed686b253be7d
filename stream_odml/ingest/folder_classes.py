"""Which class each image of a folder has, by the folders that it lies in.

The path of its folder is its class, but for folders that name none: those that split a data set (`train`, `val2017`,
`seg_test`) and those that only say that images are in them (`images`, `JPEGImages`). `train/cats` and `test/cats` are
one class, `cats`; `train/n01443537/images` is `n01443537`; of `images/train` and `images/val`, as detectors have
them, no image has a class.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from stream_odml.wording import quoted

SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "pred", "holdout"}
)
"""Words of folders that split a data set."""
CONTAINERS = frozenset(
    {
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"),
        *("jpegimages", "jpeg", "jpg", "png"),
    }
)
"""Names of folders that say that images are in them, and not of what."""
_NO_MEANING = CONTAINERS | {"set", "split", "data", "dataset"}
_YEAR = re.compile(r"(19|20)\d\d")

_Parts = tuple[str, ...]


def classes_of(images: Iterable[str]) -> dict[str, str]:
    """Return the class of each image by its path; empty for one whose folders name none."""
    parts = {path: PurePosixPath(path).parts[:-1] for path in images}
    while (inner := _without_a_level(parts)) is not None:
        parts = inner
    return {path: "/".join(rest) for path, rest in parts.items()}


def split_classes(classes: Collection[str]) -> str | None:
    """Return one line about classes that differ by folders that split a data set; None for no such class. Such a folder
    that lies beside a class folder, or at another depth, is taken for a part of the class."""
    alike: defaultdict[_Parts, list[str]] = defaultdict(list)
    for name in sorted(classes):
        folders = tuple(name.split("/"))
        alike[tuple(part for part in folders if part.lower() not in SPLITS)].append(name)
    found = next((names for same, names in alike.items() if same and len(names) > 1), None)
    if found is None:
        return None
    return (
        f"{quoted(found)} are different classes, as not all images lie in folders such as train and test: if they "
        "are one, land the folder that holds those alone"
    )


def _without_a_level(parts: Mapping[str, _Parts]) -> dict[str, _Parts] | None:
    """Take a folder that names no class from each path; None where there is none."""
    inside = [rest for rest in parts.values() if rest]
    if not inside:
        return None
    depth = _split_depth(inside)
    if depth is not None:
        return {path: rest[depth + 1 :] for path, rest in parts.items()}
    if all(rest[0].lower() in CONTAINERS for rest in inside):
        return {path: rest[1:] for path, rest in parts.items()}
    if all(rest[-1].lower() in CONTAINERS for rest in inside):
        return {path: rest[:-1] for path, rest in parts.items()}
    return None


def _split_depth(inside: Sequence[_Parts]) -> int | None:
    """Return how many folders lead to those that split the data set, None where none do: `train/cats` has 0,
    `zoo/train/cats` 1."""
    for depth in range(min(map(len, inside))):
        names = {rest[depth] for rest in inside}
        if _are_splits(names, any(len(rest) > depth + 1 for rest in inside)):
            return depth
        if len(names) > 1:
            break
    return None


def _are_splits(names: Collection[str], holds_folders: bool) -> bool:
    """Return whether all names that lie beside one another are of splits: `bullet_train` and `steam_train` are not."""
    found = (re.findall(r"[^\W\d_]+|\d+", name.lower()) for name in names)
    words = [[word for word in each if not _YEAR.fullmatch(word)] for each in found]
    if not all(SPLITS & set(each) for each in words):
        return False
    rests = {tuple(word for word in each if word not in SPLITS | _NO_MEANING) for each in words}
    if () in rests:
        return holds_folders or len(rests) == 1
    return len(rests) == 1 and len(names) > 1
