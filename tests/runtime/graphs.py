"""Small quantized graphs for tests: one operator, its quantized inputs and output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvant.graph import Graph, Quantization, TensorType, ops, validate
from kvant.runtime import QuantizedModel

RANGES = {"uint8": (0, 255), "int8": (-127, 127), "int16": (-32768, 32767)}


def typed(dtype: str, scale: float = 0.05, zero_point: int | None = None) -> TensorType:
    """An activation's type; uint8 gets a zero point of 120 unless told otherwise."""
    if zero_point is None:
        zero_point = 120 if dtype == "uint8" else 0
    return TensorType(dtype, Quantization((float(np.float32(scale)),), zero_point))  # type: ignore[arg-type]


def random_integers(rng: np.random.Generator, shape: Sequence[int], dtype: str, extreme: bool = False) -> np.ndarray:
    """Integers over the whole range of a dtype, or only its ends."""
    low, high = RANGES[dtype]
    if extreme:
        return rng.choice([low, high], size=shape).astype(dtype)
    return rng.integers(low, high, size=shape, endpoint=True).astype(dtype)


def real(q: np.ndarray, type: TensorType) -> np.ndarray:
    """What integers stand for, in float64."""
    assert type.quantization is not None
    return (q.astype(np.float64) - type.quantization.zero_point) * float(type.quantization.scale[0])


def to_integers(values: np.ndarray, type: TensorType) -> np.ndarray:
    """The nearest integers to reals, in float64, clamped to the type's range."""
    assert type.quantization is not None
    low, high = type.integer_range()
    return np.clip(np.rint(values / type.quantization.scale[0]) + type.quantization.zero_point, low, high)


def one_op(
    op: ops.AnyOp,
    inputs: dict[str, tuple[Sequence[int], TensorType]],
    output: TensorType,
    constants: dict[str, tuple[np.ndarray, Quantization | None]] | None = None,
    order: Sequence[str] | None = None,
) -> Graph:
    """A graph of one node whose inputs, by name, are graph inputs and constants, in ``order``; symbols stand for 1."""
    graph = Graph(structure=0)
    graph.example = {dim[0]: 1 for shape, _ in inputs.values() for dim in shape if isinstance(dim, tuple)}
    for name, (shape, type) in inputs.items():
        graph.add_input(name, tuple(shape), type)
    for name, (value, quantization) in (constants or {}).items():
        graph.add_constant(name, value, quantization)
    graph.add_node(op, order or [*inputs, *(constants or {})], "y", output)
    graph.outputs = ("y",)
    validate(graph)
    return graph


def run(graph: Graph, *inputs: np.ndarray) -> np.ndarray:
    """The graph's only output, the same bits from both back ends."""
    expected = QuantizedModel(graph, backend="reference")(*inputs)
    found = QuantizedModel(graph, backend="native")(*inputs)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, expected, strict=True)
    return found


def weighted_graph(
    op: ops.AnyOp,
    x_shape: Sequence[int],
    x: TensorType,
    weight: np.ndarray,
    bias: np.ndarray | None,
    output: TensorType,
    weight_scale: np.ndarray | float = 0.01,
) -> Graph:
    """A convolution or linear layer with constant weights, one scale for each output channel."""
    scales = tuple(float(s) for s in np.broadcast_to(np.float32(weight_scale), (weight.shape[0],)))
    constants: dict[str, tuple[np.ndarray, Quantization | None]] = {"weight": (weight, Quantization(scales, 0, 0))}
    if bias is not None:
        constants["bias"] = (bias.astype("int32" if x.dtype == "uint8" else "int64"), None)
    return one_op(op, {"x": (x_shape, x)}, output, constants)
