"""One definition of a zero vector: what is refused at any way in is what the gallery could not find again."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_odml.ingest.reasons import RowError
from stream_odml.ingest.vectors import checked_vector, problems_of
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.search.vectors import normalise_rows
from stream_odml.service.body import vector_from, vectors_from
from stream_odml.service.errors import ApiError
from stream_odml.zero import ZERO, is_zero, unit_rows

Floats = NDArray[np.float32]
DIM = 6


def of_length(largest: float) -> Floats:
    return (np.float32(largest) * np.linspace(-1, 0.5, DIM)).astype(np.float32)


@pytest.mark.parametrize(
    ("largest", "zero"),
    [(0.0, True), (1e-45, True), (ZERO * 0.99, True), (ZERO * 1.01, False), (1e-20, False)],
)
def test_every_way_in_and_every_comparison_have_one_answer(largest: float, zero: bool) -> None:
    vector = of_length(largest)
    rows = np.stack([vector, of_length(1.0)])
    assert is_zero(rows).tolist() == [zero, False]

    # A shard of vectors, and a pushed item; a table that is adopted; a query.
    refused = [bool(problems_of(rows))]
    for take in (checked_vector, ask, listed):
        try:
            take(vector)
            refused.append(False)
        except (RowError, ApiError):
            refused.append(True)
    assert refused == [zero] * 4

    # As a training row is stored and read by a head, and as search compares it.
    expected = np.zeros(DIM) if zero else of_length(1.0) / np.linalg.norm(of_length(1.0))
    normal = rows.copy()
    normalise_rows(normal)
    for found in (Lift(DIM).apply(rows)[0], unit_rows(rows)[0], normal[0]):
        np.testing.assert_allclose(found, expected, atol=1e-3)
    for form in ("int8", "float16"):
        assert (encode(rows, form).scale_n[0] == 0) == zero
        assert Lift(DIM).integers(encode(rows, form))[0].any() != zero


def ask(vector: Floats) -> None:
    packed = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    vectors_from({"base64": packed, "dim": DIM}, limit=9)


def listed(vector: Floats) -> None:
    vector_from(vector.tolist())
