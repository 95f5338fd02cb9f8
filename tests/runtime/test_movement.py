"""Operators that move elements: NumPy and PyTorch say where to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvant.errors import InputError
from kvant.graph import FLOAT32, Graph, Quantization, TensorType, ops
from kvant.runtime.plan import Planner

from .graphs import one_op, random_integers, run, typed

TYPES = [FLOAT32, TensorType("int64"), typed("uint8"), typed("int16")]


def values(shape: tuple[int, ...], type: TensorType) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(type.numpy)


def moved(op: ops.AnyOp, x: np.ndarray, type: TensorType) -> np.ndarray:
    return run(one_op(op, {"x": (x.shape, type)}, type), x)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.dtype)
def test_views_of_every_dtype(type):
    x = values((2, 3, 4, 5), type)
    np.testing.assert_array_equal(moved(ops.Reshape((6, -1)), x, type), x.reshape(6, 20))
    np.testing.assert_array_equal(moved(ops.Transpose((2, 0, 3, 1)), x, type), x.transpose(2, 0, 3, 1))
    np.testing.assert_array_equal(moved(ops.Slice(2, 1, None, 2), x, type), x[:, :, 1::2])
    np.testing.assert_array_equal(moved(ops.Slice(3, -3, -1), x, type), x[..., -3:-1])
    row = values((3, 1), type)
    np.testing.assert_array_equal(moved(ops.Expand((2, 3, 4)), row, type), np.broadcast_to(row, (2, 3, 4)))


# Few and many planes, tiles that are whole and not, more than one thread's work.
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.dtype)
@pytest.mark.parametrize(
    "shape", [(1, 19, 9001), (1, 9001, 19), (700, 16, 2), (700, 2, 16), (33, 48, 4), (3, 130, 131)]
)
def test_planes_are_transposed(type, shape):
    x = values(shape, type)
    graph = one_op(ops.Transpose((0, 2, 1)), {"x": (x.shape, type)}, type)
    graph.outputs = (graph.add_node(ops.Reshape((-1,)), list(graph.outputs), "flat", type),)
    np.testing.assert_array_equal(run(graph, x), x.transpose(0, 2, 1).reshape(-1))


# What is shuffled lies as convolutions left it, channels last: that is how the next one wants it.
def test_shuffled_channels_stay_where_convolutions_want_them():
    graph, kind = Graph(structure=0), typed("uint8")
    graph.add_input("x", (1, 8, 5, 6), kind)
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        graph.add_constant(name, rng.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8), Quantization((0.01,) * 8, 0, 0))
    conv = ops.Conv((1, 1), (0, 0), (0, 0), (1, 1))
    graph.add_node(conv, ["x", "first"], "y", kind)
    graph.add_node(ops.Reshape((1, 2, 4, 5, 6)), ["y"], "parted", kind)
    graph.add_node(ops.Transpose((0, 2, 1, 3, 4)), ["parted"], "swapped", kind)
    graph.add_node(ops.Reshape((1, 8, 5, 6)), ["swapped"], "shuffled", kind)
    graph.add_node(conv, ["shuffled", "second"], "z", kind)
    graph.outputs = ("z",)
    run(graph, random_integers(rng, (1, 8, 5, 6), "uint8"))
    works = [type(step.work).__name__ for step in Planner(graph).plan({"x": (1, 8, 5, 6)}).steps]
    first, second = (at for at, name in enumerate(works) if name == "Conv")
    assert works[first + 1 : second] == ["Copy"]


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.dtype)
def test_concat_along_every_axis(type):
    for axis in range(3):
        shapes = [tuple(size + (k if at == axis else 0) for at, size in enumerate((2, 3, 4))) for k in (0, 1, 2)]
        parts = [values(shape, type) for shape in shapes]
        graph = one_op(ops.Concat(axis), {f"x{i}": (part.shape, type) for i, part in enumerate(parts)}, type)
        np.testing.assert_array_equal(run(graph, *parts), np.concatenate(parts, axis))


@pytest.mark.parametrize("type", [FLOAT32, typed("uint8"), typed("int16")], ids=lambda type: type.dtype)
@pytest.mark.parametrize(("numpy_mode", "mode"), [("reflect", "reflect"), ("edge", "replicate"), ("wrap", "circular")])
def test_pad_by_index(type, numpy_mode, mode):
    x = values((2, 3, 4, 5), type)
    expected = np.pad(x, ((0, 0), (0, 0), (1, 3), (4, 0)), mode=numpy_mode)
    np.testing.assert_array_equal(moved(ops.Pad((0, 0, 1, 4), (0, 0, 3, 0), mode), x, type), expected)


def test_constant_pad_quantizes_its_value_and_crops():
    x = values((1, 1, 3, 4), typed("uint8"))
    result = moved(ops.Pad((0, 0, 1, -1), (0, 0, 0, 2), value=0.5), x, typed("uint8"))
    expected = np.pad(x[..., 1:], ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=130)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_resize_takes_the_pixels_that_torch_takes(mode):
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, out_h, out_w = (int(v) for v in rng.integers(1, 40, 4))
        x = np.arange(height * width, dtype=np.int16).reshape(1, 1, height, width)
        floats = torch.from_numpy(x.astype(np.float32))
        expected = torch.nn.functional.interpolate(floats, (out_h, out_w), mode=mode).numpy()
        np.testing.assert_array_equal(moved(ops.Resize(mode, (out_h, out_w)), x, typed("int16")), expected)
        factors = tuple(float(np.float64(v)) for v in rng.choice([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 1.7], 2))
        if min(int(height * factors[0]), int(width * factors[1])) < 1:
            continue
        expected = torch.nn.functional.interpolate(floats, scale_factor=factors, mode=mode).numpy()
        np.testing.assert_array_equal(moved(ops.Resize(mode, scale=factors), x, typed("int16")), expected)


def test_gather_wraps_negative_indices_and_refuses_others():
    x = values((2, 5, 3), typed("int16"))
    graph = one_op(ops.Gather(1), {"x": (x.shape, typed("int16")), "i": ((2, 2), TensorType("int64"))}, typed("int16"))
    indices = np.array([[0, -1], [4, -5]])
    np.testing.assert_array_equal(run(graph, x, indices), np.take(x, indices, axis=1))
    for wrong in (5, -6, 2**40):
        with pytest.raises(InputError, match=str(wrong)):
            run(graph, x, np.array([[0, wrong], [0, 0]]))


def test_embedding_is_a_gather_from_a_constant():
    table = values((7, 4), typed("uint8"))
    graph = one_op(
        ops.Gather(0), {"i": ((3,), TensorType("int64"))}, typed("uint8"), {"t": (table, typed("uint8").quantization)},
        order=["t", "i"],
    )  # fmt: skip
    np.testing.assert_array_equal(run(graph, np.array([6, 0, 3], np.int32)), table[[6, 0, 3]])


def test_reshape_of_an_input_may_be_the_output():
    graph = Graph()
    graph.add_input("x", (("n",), 4))
    graph.add_node(ops.Reshape((-1, 2)), ["x"], "y")
    graph.outputs, graph.example = ("y",), {"n": 2}
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(run(graph, x), x.reshape(6, 2))
