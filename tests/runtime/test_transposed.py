"""Transposed convolutions that are computed as convolutions of their inputs: the same bits as computed as they are."""

from __future__ import annotations

from ctypes import byref, c_int64
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.graph import ops
from kvant.runtime import QuantizedModel, native, steps
from kvant.runtime.lower import weighted
from kvant.runtime.native import NativeBackend
from kvant.runtime.plan import Planner

from .graphs import random_integers, run, typed, weighted_graph


def network(rank: int, seed: int, axis: Any, channels: int, outputs: int, groups: int = 1) -> tuple[Any, np.ndarray]:
    """A layer whose axes have each (size, kernel, stride, dilation, begin, end, extra), and an input."""
    rng = np.random.default_rng(seed)
    size, kernel, strides, dilations, begin, end, extra = zip(*axis[:rank], strict=True)
    op = ops.ConvTranspose(strides, begin, end, extra, dilations, groups)
    dtype = ("uint8", "int16")[seed % 2]
    weight = random_integers(rng, (outputs, channels // groups, *kernel), "int8")
    bias, scales = rng.integers(-999, 999, outputs), rng.uniform(1e-3, 1e-2, outputs)
    shape = (1 + seed % 2, channels, *size)
    output = typed(("int16", "uint8")[seed % 3 % 2], 0.5)
    return weighted_graph(op, shape, typed(dtype), weight, bias, output, scales), random_integers(rng, shape, dtype)


@st.composite
def axes(draw: Any) -> tuple[int, ...]:
    """(size, kernel, stride, dilation, begin, end, extra) with at least one result."""
    size, kernel, stride, dilation = (draw(st.integers(1, most)) for most in (9, 5, 4, 2))
    reach = dilation * (kernel - 1)
    begin, extra = draw(st.integers(0, reach + 1)), draw(st.integers(0, stride - 1))
    most = (size - 1) * stride + reach + extra - begin
    return size, kernel, stride, dilation, begin, draw(st.integers(0, max(0, min(reach + 1, most)))), extra


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_both_ways_give_the_same_bits(data: st.DataObject) -> None:
    axis = [data.draw(axes()), data.draw(axes())]
    rank, seed = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 999))
    for size, kernel, stride, dilation, begin, end, extra in axis:
        if (size - 1) * stride + dilation * (kernel - 1) + 1 + extra - begin - end < 1:
            return
    graph, x = network(rank, seed, axis, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20)))
    found = run(graph, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "_grows", lambda graph, node: None)
        expected = QuantizedModel(graph, backend="reference")(x)
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize(
    ("axis", "groups", "outputs"),
    [
        ((8, 2, 2, 1, 0, 0, 0), 1, 24),
        ((8, 4, 2, 1, 1, 1, 0), 1, 24),
        ((8, 3, 2, 1, 1, 1, 1), 1, 24),
        ((8, 3, 1, 1, 1, 1, 0), 1, 6),
        ((8, 3, 2, 1, 1, 1, 0), 1, None),  # 15 results
        ((8, 2, 2, 1, 0, 0, 0), 2, None),
    ],
)
def test_whole_pixels_grow(axis: tuple[int, ...], groups: int, outputs: int | None) -> None:
    graph, x = network(2, 0, [axis, axis], 4, 6, groups)
    (layer,) = [step.work for step in Planner(graph).plan({"x": x.shape}).steps if isinstance(step.work, steps.Conv)]
    assert layer.transposed == (outputs is None)
    assert layer.output_channels == (outputs or 6)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_copies_take_every_element_from_its_place(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["uint8", "int16", "float32", "int64"])))
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 8, 17]), min_size=1, max_size=4)))
    strides = [data.draw(st.sampled_from([0, 1, 2, 4, 6, 8, 16, 64])) for _ in shape]
    if data.draw(st.booleans()):
        strides[-1] = 1
    offset, shift = data.draw(st.sampled_from([0, 1, 2, 4, 8])), data.draw(st.integers(0, 8))
    needed = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + 1
    memory = np.random.default_rng(0).integers(0, 255, (needed + 9) * dtype.itemsize, np.uint8)
    x = memory[shift * dtype.itemsize :][: needed * dtype.itemsize].view(dtype)
    expected = np.lib.stride_tricks.as_strided(x[offset:], shape, [step * dtype.itemsize for step in strides]).copy()
    out = np.zeros(expected.size + 2, dtype)
    work = steps.Copy(shape, tuple(strides), offset)
    NativeBackend().bind([(work, [x], out[1:-1].reshape(shape))])()
    np.testing.assert_array_equal(out[1:-1].reshape(shape).view(np.uint8), expected.view(np.uint8))
    assert not out[[0, -1]].any()


def test_nothing_is_copied_of_an_empty_axis() -> None:
    library = native.library.load_library()
    y = np.zeros(4, np.uint8)
    sizes, steps_ = (c_int64 * 2)(0, 2), (c_int64 * 2)(2, 1)
    assert library.kvant_copy(c_int64(2), sizes, steps_, c_int64(0), c_int64(1), byref(c_int64(-1)), y.ctypes) == 0
    assert not y.any()
