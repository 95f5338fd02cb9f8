"""Pictures at another size, beside the same sums in NumPy, and what is refused."""

from __future__ import annotations

from ctypes import byref, c_int64, c_void_p
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.errors import BackendError
from kvant.runtime.native import Filter, library, resample

Array = np.ndarray[Any, np.dtype[Any]]


def random_filter(rng: np.random.Generator, size: int, count: int) -> tuple[Array, Array]:
    """First cells, and weights whose sums are about 1, some of them negative or zero."""
    terms = int(rng.integers(1, min(size, 6) + 1))
    weights = rng.normal(1 / terms, 0.5 / terms, (count, terms)) * (rng.random((count, terms)) < 0.9)
    return rng.integers(0, size - terms + 1, count), weights.astype(np.float32)


def summed(values: Array, first: Array, weights: Array) -> Array:
    """Along the first axis, one cell after the other, in float32."""
    total = np.zeros((len(first), *values.shape[1:]), np.float32)
    for k in range(weights.shape[1]):
        total += weights[:, k].reshape(-1, *[1] * (values.ndim - 1)) * values[first + k]
    return total


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(), (3,)]), st.booleans())
def test_sums_are_taken_in_order(seed: int, channels: tuple[int, ...], is_part: bool) -> None:
    rng = np.random.default_rng(seed)
    height, width, rows, columns = (int(size) for size in rng.integers(1, 40, 4))
    whole = rng.integers(0, 256, (height, width + 5, *channels), np.uint8)
    picture = whole[:, 2 : 2 + width] if is_part else np.ascontiguousarray(whole[:, :width])
    down, across = random_filter(rng, height, rows), random_filter(rng, width, columns)
    lines = summed(picture.swapaxes(0, 1).astype(np.float32), *across).swapaxes(0, 1)
    expected = np.clip(np.rint(summed(lines, *down)), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(resample(picture, Filter(*down), Filter(*across)), expected)


def test_pictures_that_lie_otherwise() -> None:
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    same = Filter(np.arange(4), np.ones((4, 1))), Filter(np.arange(5), np.ones((5, 1)))
    for other in (
        picture[::-1],
        picture[:, ::-1],
        picture[..., ::-1],
        picture.transpose(1, 0, 2)[:4].repeat(2, axis=1)[:, :5],
    ):
        np.testing.assert_array_equal(resample(other, *same), other)
    np.testing.assert_array_equal(resample(picture[..., 0], *same), picture[..., 0])


@pytest.mark.parametrize(("first", "terms"), [([-1, 0], 2), ([0, 4], 2), ([0, 0], 6)])
def test_cells_outside_are_refused(first: list[int], terms: int) -> None:
    outside, fine = Filter(np.array(first), np.ones((2, terms))), Filter(np.array([0]), np.ones((1, 1)))
    for pair in ((outside, fine), (fine, outside)):
        with pytest.raises(BackendError, match="out of range"):
            resample(np.zeros((5, 5), np.uint8), *pair)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(BackendError, match="out of range"):
        fine = Filter(np.array([0]), np.ones((1, 1)))
        resample(np.zeros((5, 5, 4), np.uint8), fine, fine)
    lib, one = library.load_library(), c_int64(1)
    assert lib.kvant_resample(one, one, one, None, one, None, None, None, one) == 1
    pixel, record = np.zeros(9, np.uint8), byref(Filter(np.array([0]), np.ones((1, 1))).record)
    place = c_void_p(pixel.ctypes.data)
    assert lib.kvant_resample(one, c_int64(2), one, place, one, record, record, place, one) == 2  # rows overlap
    huge = c_int64(2**61)
    assert lib.kvant_resample(one, huge, c_int64(3), place, huge, record, record, place, one) == 3
