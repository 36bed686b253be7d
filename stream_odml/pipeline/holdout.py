"""Which items are held out of training for evaluation: a function of the item's id alone.

Invariant: the same id is held out or not for ever, on every machine, whatever arrives around it. A larger
fraction holds out the same items and more.
"""

from __future__ import annotations

import hashlib


def is_held_out(item_id: str, fraction: float) -> bool:
    """Return whether the item belongs to the held-out `fraction` (0..1). Raises ValueError for another fraction."""
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"held-out fraction {fraction}: expected 0..1")
    digest = hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64
