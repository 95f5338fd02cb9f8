"""Histograms: exact, of fixed size, and blind to the order of batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.quantization.channels import Channels
from kvant.quantization.observers import HALF_BINS, HISTOGRAM_VALUES, Extremes, Histogram, MovingAverage


def observe(histogram: Histogram, values: torch.Tensor) -> None:
    low, high = torch.aminmax(values)
    histogram.observe(histogram.some(values), float(low), float(high))


def filled(batches: list[torch.Tensor]) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        observe(histogram, batch)
    return histogram


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(6)), st.integers(0, 2**31))
def test_order_of_batches_does_not_matter(order: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = (1e-6, 1e-3, 0.5, 1.0, 77.0, 1e5)
    batches = [torch.randn(1, 500, generator=generator) * scale for scale in scales]
    expected, got = filled(batches), filled([batches[index] for index in order])
    assert got.exponent == expected.exponent
    assert (got.low, got.high) == (expected.low, expected.high)
    np.testing.assert_array_equal(got.counts, expected.counts)


def test_merging_bins_equals_counting_anew() -> None:
    small, large = torch.randn(1, 1000), torch.randn(1, 1000) * 1000
    merged = filled([small]).merge(filled([large]))
    np.testing.assert_array_equal(merged.counts, filled([small, large]).counts)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.999999, 2.0**-70, -(2.0**20), 3e38, 1e-38, 0.0])
def test_every_value_falls_into_its_bin(value: float) -> None:
    histogram = filled([torch.full((1, 3), value)])
    index = int(np.flatnonzero(histogram.counts)[0])
    width = math.ldexp(1.0, histogram.exponent)
    assert histogram.counts.sum() == 3
    assert (index - HALF_BINS) * width <= value < (index - HALF_BINS + 1) * width


def test_memory_is_constant_and_large_maps_are_thinned() -> None:
    histogram = filled([torch.randn(1, 4, 512, 512) for _ in range(3)])
    assert histogram.counts.nbytes == 2 * HALF_BINS * 8
    assert histogram.counts.sum() <= 3 * 2 * HISTOGRAM_VALUES


def test_thinning_keeps_exact_extremes() -> None:
    values = torch.zeros(1, 10 * HISTOGRAM_VALUES)
    values[0, 12345] = 50.0
    values[0, 54321] = -8.0
    histogram = filled([values])
    assert (histogram.low, histogram.high) == (-8.0, 50.0)


def test_extremes_and_moving_average() -> None:
    extremes, average = Extremes(), MovingAverage()
    for high in (1.0, 3.0, 2.0):
        for seen in (extremes, average):
            seen.observe(torch.empty(0), -high, high)
    assert (extremes.low, extremes.high) == (-3.0, 3.0)
    assert average.high == pytest.approx(1.0 + 0.1 * 2.0 + 0.1 * (2.0 - 1.2))


def test_channels_that_lie_side_by_side_show_the_same() -> None:
    x = torch.randn(2, 6, 40, 33, generator=torch.Generator().manual_seed(4))
    one, other = (Channels.of(values, 1) for values in (x, x.contiguous(memory_format=torch.channels_last)))
    assert one.count == other.count
    for name in ("low", "high", "sums", "squares"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-4)
    assert (one.low == x.amin((0, 2, 3)).numpy()).all() and (one.high == x.amax((0, 2, 3)).numpy()).all()


@pytest.mark.parametrize("channels", [3, 96, 99])
def test_thinning_misses_no_channel_that_lies_beside_others(channels: int) -> None:
    """99 is the stride that a map of this size would be thinned by."""
    x = torch.arange(channels).float()[None, :, None, None].expand(1, channels, 99, HISTOGRAM_VALUES // channels + 1)
    some = Histogram.some(x.contiguous(memory_format=torch.channels_last))
    assert set(some.tolist()) == set(range(channels))
