"""Stored features of several trunks in the space of one: mapped, and coded again as if it had made them."""

# n rows   D trunk feature

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.store.select import Ints

BLOCK = 4096
"""Features mapped at a time."""


def in_one_trunk(stored: FeatureCodes, made_by: Ints, drifts: Sequence[DriftMap]) -> FeatureCodes:
    """Return features of which row i is mapped by `drifts[made_by[i]]`; what one trunk made is as it was stored."""
    numbers = [number for number in np.unique(made_by) if not isinstance(drifts[number], IdentityMap)]
    if not numbers:
        return stored
    codes_nD, scale_n = stored.codes_nD.copy(), stored.scale_n.copy()
    for number in numbers:
        mine = np.flatnonzero(made_by == number)
        for start in range(0, len(mine), BLOCK):
            some = mine[start : start + BLOCK]
            # In float64: a feature that is mapped again, among others, must get the same codes.
            moved_nD = drifts[number].apply(stored[some].decode().astype(np.float64))
            coded = encode(moved_nD, stored.format)
            codes_nD[some], scale_n[some] = coded.codes_nD, coded.scale_n
    return FeatureCodes(codes_nD, scale_n)
