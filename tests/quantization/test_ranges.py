"""Ranges, scales and zero points against first principles and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kvant
from kvant.capture import capture, prepare
from kvant.errors import CalibrationError
from kvant.graph import TensorType
from kvant.quantization import ActivationScheme
from kvant.quantization.observers import HALF_BINS, Extremes, Histogram
from kvant.quantization.progress import Progress
from kvant.quantization.ranges import Pooled, Tails, activation_type, choose_range
from kvant.quantization.simulate import fake_quantize
from kvant.quantization.statistics import collect
from kvant.quantization.types import activation_types

reals = st.floats(-1e6, 1e6, width=32)


def histogram_of(values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    histogram.observe(histogram.some(values[None]), float(values.min()), float(values.max()))
    return histogram


@given(reals, reals, st.sampled_from([8, 16]))
def test_zero_is_exact_and_the_range_is_covered(first: float, second: float, bits: int) -> None:
    low, high = min(first, second), max(first, second)
    type_ = activation_type((low, high), bits)
    quantization = type_.quantization
    smallest, largest = type_.integer_range()
    assert smallest <= quantization.zero_point <= largest
    assert np.float32(quantization.scale[0]) == quantization.scale[0] > 0
    # Rounding the zero point moves either end by at most half a step.
    scale = quantization.scale[0]
    assert (largest - quantization.zero_point) * scale >= high - 0.51 * scale
    assert (smallest - quantization.zero_point) * scale <= low + 0.51 * scale


def test_a_dead_tensor_gets_a_usable_scale() -> None:
    assert activation_type((0.0, 0.0), 8).quantization.scale == (1.0,)
    assert activation_type((0.0, 0.0), 16).quantization.scale == (1.0,)


def test_least_squares_clips_outliers_and_beats_min_max() -> None:
    values = torch.randn(600, 8192, generator=torch.Generator().manual_seed(1))
    values[0, 0] = 40.0
    histogram = Histogram()
    histogram.observe(histogram.some(values), float(values.min()), float(values.max()))
    best = activation_type(choose_range([histogram], ActivationScheme()), 8)
    plain = activation_type(choose_range([histogram], ActivationScheme(range="minmax")), 8)
    sample = values[1:]
    error = (fake_quantize(sample, best) - sample).square().mean()
    assert error < 0.2 * (fake_quantize(sample, plain) - sample).square().mean()


def test_least_squares_keeps_what_is_evenly_used() -> None:
    low, high = choose_range([histogram_of(torch.linspace(-1, 3, 100_000))], ActivationScheme())
    assert low == pytest.approx(-1, abs=0.06) and high == pytest.approx(3, abs=0.06)


def test_percentile_cuts_the_tail() -> None:
    values = torch.linspace(0, 1, 10_001)
    values[-1] = 100.0
    low, high = choose_range([histogram_of(values)], ActivationScheme(range="percentile", percentile=99.9))
    assert low == 0 and high < 1.1


@pytest.mark.parametrize("method", ["aciq", "kl"])
@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_that_relu_leaves_move_no_clip(method: str, bits: int) -> None:
    """They are exact in every range; counted, nine of ten of them narrow it to less than half."""
    values = torch.from_numpy(np.random.default_rng(1).exponential(size=8000).astype(np.float32))
    scheme = ActivationScheme(bits, range=method)  # type: ignore[arg-type]
    alone = choose_range([histogram_of(values)], scheme)
    seen = histogram_of(values)
    zeros = torch.zeros(72_000)
    seen.observe(zeros, 0.0, 0.0)
    assert choose_range([seen], scheme) == pytest.approx(alone, rel=0.02)
    assert choose_range([histogram_of(zeros)], scheme) == (0.0, 0.0)


def test_tied_tensors_share_the_union() -> None:
    histograms = [histogram_of(torch.linspace(0, 1, 1000)), histogram_of(torch.linspace(-4, 0, 1000))]
    assert choose_range(histograms, ActivationScheme(range="minmax")) == (-4.0, 1.0)


def test_nothing_observed_is_an_error() -> None:
    with pytest.raises(CalibrationError):
        choose_range([Extremes()], ActivationScheme())


def test_few_samples_leave_room_but_not_beyond_clamps_and_inputs() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU6(), torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 4, 1)
    ).eval()
    with torch.no_grad():
        net[0].bias.fill_(20.0)
    pictures = list(torch.rand(40, 3, 8, 8).split(1))
    graph = prepare(capture(net, (pictures[0],), {}))
    middle = graph.nodes[1].output

    def types(count: int) -> dict[str, TensorType]:
        seen = collect(graph, ([picture] for picture in pictures), "histogram", 4, Progress(False))
        return activation_types(graph, seen.observers, kvant.Recipe(), count)[0]

    few, many = types(8), types(40)
    scale = {name: (few[name].quantization.scale[0], many[name].quantization.scale[0]) for name in few}
    assert scale[middle][0] == pytest.approx(1.25 * scale[middle][1], rel=0.02)
    assert scale[graph.nodes[0].output][0] == scale[graph.nodes[0].output][1] == pytest.approx(6 / 255)
    assert scale[graph.inputs[0].name][0] == scale[graph.inputs[0].name][1]


@given(st.integers(0, 10**6), st.integers(1, 3000))
def test_errors_of_many_ranges_at_once_are_those_of_one_by_one(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(2 * HALF_BINS, bins, replace=False)) - HALF_BINS
    pooled = Pooled(rng.exponential(size=bins) ** 4, (places + 0.5) / 256, 1 / 256)
    low, high = pooled.centers[0] * np.linspace(1, 0.2, 9), pooled.centers[-1] * np.linspace(1, 0.3, 9)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    step = (high - low) / 255
    wanted = [pooled.squared_error(*each) for each in zip(low, high, step, strict=True)]
    np.testing.assert_allclose(Tails(pooled).squared_errors(low, high, step), wanted, rtol=1e-7)
