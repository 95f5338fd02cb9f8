"""What is chosen, counted and sampled: PyTorch says what comes out, both back ends give the same bits."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kvant.errors import GraphError, InputError, ShapeError
from kvant.format import from_bytes, to_bytes
from kvant.graph import FLOAT32, TensorType, ops
from kvant.runtime import QuantizedModel

from .graphs import one_op, random_integers, real, run, typed

INT64 = TensorType("int64")
MODES = ["bilinear", "nearest", "bicubic"]
PADDINGS = ["zeros", "border", "reflection"]


def sampled(op: ops.GridSample, x: np.ndarray, grid: np.ndarray, types: list[TensorType]) -> np.ndarray:
    x_type, grid_type, y_type = types
    return run(one_op(op, {"x": (x.shape, x_type), "grid": (grid.shape, grid_type)}, y_type), x, grid)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(7, 10), (1, 4), (1, 1)])
def test_sampling_is_that_of_torch(mode, padding, align, size):
    rng = np.random.default_rng(1)
    types = [typed("uint8", 0.05), typed("int16", 3.1 / 32767), typed("int16", 20 / 32767)]
    x, grid = random_integers(rng, (2, 5, *size), "uint8"), random_integers(rng, (2, 9, 8, 2), "int16")
    found = real(sampled(ops.GridSample(mode, padding, align), x, grid, types), types[2])
    given = [torch.from_numpy(real(each, type)) for each, type in zip((x, grid), types, strict=False)]
    wanted = F.grid_sample(*given, mode, padding, align).numpy()
    # Weights of 1/2048 and steps of the output; nearest has nothing to round but its result.
    bound = 20 / 32767 if mode == "nearest" else 0.02
    assert np.abs(found - wanted).max() < bound


def test_sampling_at_pixels_gives_pixels():
    x = random_integers(np.random.default_rng(2), (1, 3, 5, 9), "uint8")
    columns, rows = np.meshgrid(np.arange(9) - 4, 2 * (np.arange(5) - 2))
    grid = np.stack([columns, rows], axis=-1)[None].astype(np.int16)
    types = [typed("uint8"), typed("int16", 0.25), typed("uint8")]
    for mode, padding in product(MODES, PADDINGS):
        np.testing.assert_array_equal(sampled(ops.GridSample(mode, padding, True), x, grid, types), x)


def test_even_images_stay_even():
    x = np.full((1, 2, 4, 6), 211, np.uint8)
    grid = random_integers(np.random.default_rng(3), (1, 40, 40, 2), "int16")
    types = [typed("uint8"), typed("int16", 2 / 32767), typed("uint8")]
    for mode in MODES:
        found = sampled(ops.GridSample(mode, "border"), x, grid, types)
        np.testing.assert_array_equal(found, np.full((1, 2, 40, 40), 211))


def test_one_sample_in_fractions():
    x = np.array([[[[10, 20], [40, 250]]]], np.uint8)
    grid = np.array([[[[3000, -9000]]]], np.int16)
    types = [typed("uint8", 1.0, 5), typed("int16", 2.0**-15), typed("int16", 2.0**-7)]
    place = [Fraction(at, 2**15) + Fraction(1, 2) for at in (3000, -9000)]
    across, down = (Fraction(round(each * 2048), 2048) for each in place)
    upper, lower = (5 + 10 * across, 35 + 210 * across)
    wanted = round((upper + (lower - upper) * down) * 128)
    assert sampled(ops.GridSample("bilinear"), x, grid, types).item() == wanted


def test_places_far_outside():
    x = random_integers(np.random.default_rng(4), (1, 1, 3, 4), "uint8")
    grid = np.array([[[[32767, -32768], [-32768, 0]]]], np.int16)
    types = [typed("uint8"), typed("int16", 1e30), typed("uint8")]
    assert (sampled(ops.GridSample("bilinear"), x, grid, types) == 120).all()
    border = sampled(ops.GridSample("bicubic", "border"), x, grid, types)
    assert border.reshape(2)[0] == x[0, 0, 0, 3]
    sampled(ops.GridSample("nearest", "reflection", True), x, grid, types)


def test_a_constant_image():
    rng = np.random.default_rng(9)
    x, grid = random_integers(rng, (2, 5, 4, 6), "uint8"), random_integers(rng, (2, 3, 3, 2), "int16")
    types = [typed("uint8"), typed("int16", 1 / 30000), typed("uint8")]
    wanted = sampled(ops.GridSample("bilinear"), x, grid, types)
    inputs, constants = {"grid": (grid.shape, types[1])}, {"x": (x, types[0].quantization)}
    graph = one_op(ops.GridSample("bilinear"), inputs, types[2], constants, ["x", "grid"])
    np.testing.assert_array_equal(run(graph, grid), wanted)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("largest", [True, False])
def test_the_largest_come_first_and_of_equal_ones_the_first(dtype, largest):
    x = np.random.default_rng(5).integers(-4 if dtype == "int16" else 0, 5, (3, 50, 2)).astype(dtype)
    for axis, count in ((0, 2), (1, 17), (1, 50), (2, 1)):
        graph = one_op(ops.TopK(axis, count, largest), {"x": (x.shape, typed(dtype))}, INT64)
        values = torch.from_numpy(x.astype(np.int64))
        order = torch.sort(values, dim=axis, descending=largest, stable=True).indices
        np.testing.assert_array_equal(run(graph, x), order.narrow(axis, 0, count).numpy())


def test_elements_by_index():
    rng = np.random.default_rng(6)
    x = random_integers(rng, (2, 5, 7), "int16")
    for axis in range(3):
        shape = [2, 5, 7]
        shape[axis] = 4
        indices = rng.integers(0, x.shape[axis], shape)
        inputs = {"x": (x.shape, typed("int16")), "i": (indices.shape, INT64)}
        graph = one_op(ops.GatherElements(axis), inputs, typed("int16"))
        wanted = torch.gather(torch.from_numpy(x), axis, torch.from_numpy(indices)).numpy()
        np.testing.assert_array_equal(run(graph, x, indices), wanted)
        np.testing.assert_array_equal(run(graph, x, indices - x.shape[axis]), wanted)


def test_one_index_serves_whole_axes():
    x = random_integers(np.random.default_rng(7), (3, 6, 20), "uint8")
    indices = np.array([[[5], [0]]])
    inputs = {"x": (x.shape, typed("uint8")), "i": (indices.shape, INT64)}
    found = run(one_op(ops.GatherElements(1), inputs, typed("uint8")), x, indices)
    np.testing.assert_array_equal(found, x[:, [5, 0]])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_index_out_of_range_is_the_callers_error(backend):
    inputs = {"x": ((2, 4), typed("uint8")), "i": ((2, 3), INT64)}
    model = QuantizedModel(one_op(ops.GatherElements(1), inputs, typed("uint8")), backend=backend)
    with pytest.raises(InputError, match="index 4 is out of range for an axis of 4"):
        model(np.zeros((2, 4), np.uint8), np.array([[0, 3, -4], [1, 4, 9]]))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_running_sums(axis):
    x = random_integers(np.random.default_rng(8), (4, 30, 3), "uint8")
    y_type = typed("int16", 0.25)
    graph = one_op(ops.CumSum(axis), {"x": (x.shape, typed("uint8", 0.5))}, y_type)
    wanted = real(x, typed("uint8", 0.5)).cumsum(axis)
    np.testing.assert_array_equal(real(run(graph, x), y_type), wanted)
    counts = x.astype(np.int64) * 2**56
    graph = one_op(ops.CumSum(axis), {"x": (x.shape, INT64)}, INT64)
    np.testing.assert_array_equal(run(graph, counts), torch.from_numpy(counts).cumsum(axis).numpy())


@pytest.mark.parametrize("fn", ["add", "sub", "mul", "div", "mod", "min", "max"])
def test_integers(fn):
    ends = [-(2**63), -(2**63) + 1, -7, -2, -1, 0, 1, 2, 7, 2**63 - 1]
    a, b = np.array(ends)[:, None], np.array(ends)
    graph = one_op(ops.IntBinary(fn), {"a": (a.shape, INT64), "b": (b.shape, INT64)}, INT64)
    found = run(graph, a, b)
    functions = {
        "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y,
        "div": lambda x, y: x // y if y else 0, "mod": lambda x, y: x % y if y else 0, "min": min, "max": max,
    }  # fmt: skip
    wanted = [[(functions[fn](x, y) + 2**63) % 2**64 - 2**63 for y in ends] for x in ends]
    np.testing.assert_array_equal(found, np.array(wanted))


def test_the_first_largest_integer():
    x = np.array([[3, 2**62, 2**62 + 1, 0], [-5, -4, -4, -6]])
    for keepdims in (False, True):
        graph = one_op(ops.ArgMax(1, keepdims), {"x": (x.shape, INT64)}, INT64)
        np.testing.assert_array_equal(run(graph, x), x.argmax(1, keepdims=keepdims))
        assert from_bytes(to_bytes(graph)).info.features == ("places",)


def test_the_nearest_reals():
    x = np.array([0, -7, 2**24 + 1, 2**24 + 3, -(2**63), 2**63 - 1])
    found = run(one_op(ops.Real(), {"x": (x.shape, INT64)}, FLOAT32), x)
    np.testing.assert_array_equal(found, [0, -7, 2**24, 2**24 + 4, -(2.0**63), 2.0**63])


def test_what_does_not_fit_is_refused():
    kinds = {"x": ((2, 3, 4), typed("uint8")), "i": ((2, 3, 4), INT64)}
    with pytest.raises(ShapeError, match="differ beside axis 1"):
        one_op(ops.GatherElements(1), kinds | {"i": ((2, 3, 3), INT64)}, typed("uint8"))
    with pytest.raises(ShapeError, match="another rank"):
        one_op(ops.GatherElements(1), kinds | {"i": ((2, 3), INT64)}, typed("uint8"))
    with pytest.raises(GraphError, match="wants int64"):
        one_op(ops.GatherElements(1), kinds | {"i": ((2, 3, 4), typed("uint8"))}, typed("uint8"))
    with pytest.raises(ShapeError, match="5 elements are wanted of 4"):
        one_op(ops.TopK(2, 5), {"x": kinds["x"]}, INT64)
    with pytest.raises(GraphError, match="wants int64"):
        one_op(ops.TopK(2, 1), {"x": kinds["x"]}, typed("uint8"))
    with pytest.raises(GraphError, match="wants int64"):
        one_op(ops.IntBinary("add"), {"x": kinds["x"], "i": kinds["i"]}, INT64)
    with pytest.raises(GraphError, match="wants int64"):
        one_op(ops.Real(), {"x": kinds["x"]}, FLOAT32)
    with pytest.raises(GraphError, match="gives float32"):
        one_op(ops.Real(), {"i": kinds["i"]}, typed("uint8"))
    with pytest.raises(GraphError, match="wants int64"):
        one_op(ops.CumSum(0), {"x": kinds["x"]}, INT64)
    with pytest.raises(ShapeError, match="axis 3 is out of range"):
        one_op(ops.CumSum(3), {"x": kinds["x"]}, typed("uint8"))
    image = ((2, 3, 4, 5), typed("uint8"))
    for shape in ((2, 6, 2), (2, 6, 6, 3), (1, 6, 6, 2)):
        with pytest.raises(ShapeError):
            one_op(ops.GridSample("bilinear"), {"x": image, "g": (shape, typed("int16"))}, typed("uint8"))
