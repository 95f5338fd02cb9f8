"""kvant_conv between buffers that end with their last pixel, whose pixels may lie further apart than their channels."""

from __future__ import annotations

from ctypes import byref, c_int64, c_void_p

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.graph import Graph, ops
from kvant.runtime import steps
from kvant.runtime.native import calls, library
from kvant.runtime.native.packed import Packed
from kvant.runtime.plan import Planner
from kvant.runtime.reference import ReferenceBackend

from .cases import DTYPES, Case, convolutions, linears
from .graphs import random_integers, typed, weighted_graph
from .test_methods import conv_graph

GUARD = 0x5A


@st.composite
def depthwise(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels, kernel = draw(st.sampled_from([1, 3, 15, 16, 17, 33, 64, 130])), draw(st.sampled_from([1, 3, 5]))
    weight = random_integers(rng, (channels * draw(st.sampled_from([1, 1, 2])), 1, kernel, kernel), "int8")
    stride, pad = draw(st.integers(1, 2)), draw(st.integers(0, kernel // 2))
    op = ops.Conv((stride,) * 2, (pad,) * 2, (pad,) * 2, (1, 1), channels)
    x_type, shape = typed(draw(DTYPES)), (draw(st.integers(1, 2)), channels, *(draw(st.integers(5, 20)) for _ in "hw"))
    graph = weighted_graph(op, shape, x_type, weight, None, typed(draw(DTYPES), 0.05), 0.002)
    return graph, [random_integers(rng, shape, x_type.dtype)]


@st.composite
def square(draw: st.DrawFn) -> Case:
    """What Winograd and the transform compute."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kernel, channels, outputs = draw(st.sampled_from([3, 7])), draw(st.integers(32, 75)), draw(st.integers(1, 80))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    target = typed(draw(DTYPES), 0.01)
    graph = conv_graph(rng, kernel, channels, outputs, shape, kernel // 2, 120, target, factor=20.0)
    return graph, [random_integers(rng, (shape[0], channels, *shape[1:]), "uint8")]


LAYERS = {"direct": convolutions(), "depthwise": depthwise(), "linear": linears(), "square": square()}


def layer_of(graph: Graph, x: np.ndarray) -> steps.Conv:
    (found,) = [s.work for s in Planner(graph).plan({"x": x.shape}).steps if isinstance(s.work, steps.Conv)]
    return found


def strided(pixels: np.ndarray, stride: int) -> np.ndarray:
    """Memory of (pixels, channels) that ends with the last channel; between pixels lies something else."""
    count, channels = pixels.shape
    memory = np.full((count - 1) * stride + channels, GUARD, pixels.dtype)
    np.lib.stride_tricks.as_strided(memory, pixels.shape, (stride * memory.itemsize, memory.itemsize))[:] = pixels
    return memory


def convolve(work: steps.Conv, algorithm: str, x: np.ndarray, shape: library.ConvShape, y: np.ndarray) -> None:
    packed, target = Packed(work, algorithm), calls._target(work.target)
    pointers = [c_void_p(address) for address in (packed.address, x.ctypes.data, y.ctypes.data)]
    conv = library.load_library().kvant_conv
    assert conv(byref(shape), pointers[0], pointers[1], byref(target), None, pointers[2]) == 0


@pytest.mark.parametrize("name", LAYERS)
def test_convolutions_stay_within_their_buffers(name: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(LAYERS[name], st.sampled_from([0, 0, 1, 7, 64]), st.sampled_from([0, 0, 1, 5, 64]))
    def check(case: Case, gap_x: int, gap_y: int) -> None:
        check_buffers(*case, gap_x, gap_y)

    check()


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [17, 33, 48, 63, 65, 127])
def test_depthwise_blocks_that_are_not_whole(channels: int, stride: int, dtype: str) -> None:
    rng = np.random.default_rng(channels)
    weight = random_integers(rng, (channels, 1, 3, 3), "int8")
    op = ops.Conv((stride,) * 2, (1, 1), (1, 1), (1, 1), channels)
    shape = (1, channels, 7, 9)
    graph = weighted_graph(op, shape, typed(dtype), weight, None, typed(dtype, 0.05), 0.002)
    check_buffers(graph, [random_integers(rng, shape, dtype)], 0, 0)


def check_buffers(graph: Graph, inputs: list[np.ndarray], gap_x: int, gap_y: int) -> None:
    """Every method gives the reference's bits and writes nothing between pixels."""
    (given_x,) = inputs
    work = layer_of(graph, given_x)
    x = np.resize(given_x, (work.batch * work.size[0] * work.size[1], work.channels))
    count = work.batch * work.output_size[0] * work.output_size[1]
    expected = np.empty((count, work.output_channels), work.target.dtype)
    ReferenceBackend().bind([(work, [x], expected)])()
    blank = np.full(expected.shape, GUARD, expected.dtype)
    strides = work.channels + gap_x, work.output_channels + gap_y
    pairs = [(c_int64 * 2)(*pair) for pair in (work.size, work.output_size, work.pads)]
    shape = library.ConvShape(work.batch, *pairs, *strides)
    for algorithm in ("direct", "winograd", "transform", "winograd-late", "transform-late"):
        y = strided(blank, strides[1])
        convolve(work, algorithm, strided(x, strides[0]), shape, y)
        np.testing.assert_array_equal(y, strided(expected, strides[1]), err_msg=algorithm)
