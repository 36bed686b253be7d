"""Where no other files belong: the folder of a stream root, which its streams, copies and erasures take for their own.

Protects: what a command writes for others lies in no stream root, by whatever links its place is named.
"""

from __future__ import annotations

import os
from pathlib import Path

from stream_odml.storage.reading import scheme_of


def root_around(place: str, *roots: str) -> str | None:
    """Return the stream root that a place is or lies in, None for one outside of all. `roots` are looked at first; they
    may be prefixes of an object store, in which no others are searched for."""
    real = os.path.realpath(place)
    for root in roots:
        if f"{real}/".startswith(f"{os.path.realpath(root)}/"):
            return root
    if scheme_of(place):
        return None
    folders = map(str, (Path(real), *Path(real).parents))
    return next((folder for folder in folders if is_root(folder)), None)


def is_root(folder: str) -> bool:
    """Return whether a local folder is a stream root, or a backup of one."""
    return os.path.isdir(os.path.join(folder, "ledger", "_delta_log"))
