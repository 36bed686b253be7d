"""Stored features: how far decoding is from what was coded, and what cannot be coded."""

from __future__ import annotations

import numpy as np
import pytest

from stream_odml.learn.feature_codes import FeatureCodes, FeatureFormat, encode
from tests.learn.streams import made


def test_each_row_has_its_own_scale_and_its_largest_value_is_kept() -> None:
    h = np.array([[0.0, 2.0, -1.0], [1e-3, 0.0, 5e-4], [0.0, 0.0, 0.0]], np.float32)
    codes = encode(h)
    assert codes.codes_nD.tolist() == [[0, 127, -64], [127, 0, 64], [0, 0, 0]]
    assert np.allclose(codes.decode(), h, atol=2.0 / 254)
    assert np.isclose(codes.decode()[0, 1], 2.0)
    assert not codes.decode()[2].any()


@pytest.mark.parametrize(("form", "error", "size"), [("int8", 1 / 254, 68), ("float16", 2**-11, 132)])
def test_the_error_is_bounded_by_the_rows_largest_value(form: FeatureFormat, error: float, size: int) -> None:
    h, _ = made(9, 5, 64)
    codes = encode(h * np.logspace(-20, 20, len(h), dtype=np.float32)[:, None], form)
    largest = np.abs(h).max(axis=1, keepdims=True)
    relative = codes.decode() / np.logspace(-20, 20, len(h), dtype=np.float32)[:, None]
    assert np.abs(relative - h).max() <= 1.001 * error * largest.max()
    assert (np.abs(relative - h) <= 1.001 * error * largest).all()
    assert (codes.format, codes.dim, len(codes)) == (form, 64, 45)


@pytest.mark.parametrize("form", ["int8", "float16"])
def test_what_was_decoded_is_coded_alike(form: FeatureFormat) -> None:
    codes = encode(made(9, 5, 64)[0], form)
    assert np.array_equal(encode(codes.decode(), form).codes_nD, codes.codes_nD)


@pytest.mark.parametrize("form", ["int8", "float16"])
@pytest.mark.parametrize("value", [1e-45, 1e-38, 3e38])
def test_the_ends_of_float32_are_coded_without_a_value_that_is_not_finite(
    form: FeatureFormat, value: float
) -> None:
    h = np.array([[value, -value / 2, 0]], np.float32)
    decoded = encode(h, form).decode()
    assert np.isfinite(decoded).all()
    assert np.allclose(decoded, h, rtol=0.01, atol=1e-36)


def test_half_precision_is_finer_on_rows_of_even_values() -> None:
    h, _ = made(9, 5, 64)
    eight, half = (np.square(encode(h, form).decode() - h).mean() for form in ("int8", "float16"))
    assert half < eight / 100


def test_slices_are_rows_and_nothing_is_a_row() -> None:
    codes = encode(made(3, 2, 8)[0])
    assert np.array_equal(codes[1:3].decode(), codes.decode()[1:3])
    assert np.array_equal(codes[np.array([4, 0])].decode(), codes.decode()[[4, 0]])
    assert encode(np.empty((0, 8), np.float32)).decode().shape == (0, 8)


def test_what_cannot_be_coded_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 features have a value that is not finite"):
        encode(np.array([[1.0, np.nan], [1.0, 2.0]], np.float32))
    with pytest.raises(ValueError, match="expected \\[n, D\\]"):
        encode(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="'int4', expected one of int8, float16"):
        encode(np.zeros((1, 3), np.float32), "int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float64"):
        FeatureCodes(np.zeros((1, 3)), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="one a row"):
        FeatureCodes(np.zeros((1, 3), np.int8), np.zeros(2, np.float32))
