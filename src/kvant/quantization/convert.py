"""From a float graph, the types of its activations and its integer weights, to the integer graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property

import numpy as np

from kvant.errors import QuantizationError
from kvant.graph import FLOAT32, PRELU, Graph, Node, Quantization, TensorType, example_shapes, infer_shapes, ops
from kvant.quantization.ranges import activation_type, scale_of
from kvant.quantization.simulate import Plan
from kvant.quantization.tables import pointwise_table, quantize_array, softmax_table
from kvant.quantization.ties import moved_inputs, moves
from kvant.quantization.weights import fit_bias, fit_sums, quantize_bias


def convert(plan: Plan) -> Graph:
    """The integer graph that computes what ``plan.graph`` computes, with everything that was decided.

    Raises:
        QuantizationError: a node has no integer form; the message names it.
    """
    return _Converter(plan).run()


class _Converter:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.source = plan.graph
        self.types = plan.types
        self.weights = plan.weights
        self.biases = plan.biases
        self.tables = plan.tables
        self.reals = plan.reals
        # Tensors that exist as float32.
        self.floats: dict[str, str] = {}
        self.reserved = {node.output for node in plan.graph.nodes}
        self.target = Graph(structure=plan.graph.structure, example=dict(plan.graph.example))
        self.names: dict[str, str] = {}
        self.shared: dict[tuple[str, bytes], str] = {}

    def run(self) -> Graph:
        for entry in self.source.inputs:
            self.target.add_input(entry.name, entry.shape, entry.type)
        consumers = self.source.consumers()
        for entry in self.source.inputs:
            if entry.type.dtype != "float32":
                self.names[entry.name] = entry.name
                continue
            self.floats[entry.name] = entry.name
            readers = [node.output for node in consumers[entry.name]]
            if not readers or not all(name in self.reals for name in readers):
                self._integers(entry.name)
        for node in self.source.nodes:
            self._convert(node)
        self.target.outputs = tuple(self._output(name) for name in self.source.outputs)
        return self.target

    def _integers(self, name: str) -> str:
        """The quantized tensor; made of the float32 one where there is only that."""
        if name not in self.names:
            quantized = self._free(f"{name}.quantized")
            self.names[name] = self.target.add_node(ops.Quantize(), [self.floats[name]], quantized, self.types[name])
        return self.names[name]

    def _real(self, name: str) -> str:
        """The float32 tensor; made of the quantized one where there is only that."""
        if name not in self.floats:
            self.floats[name] = self.target.add_node(ops.Dequantize(), [self.names[name]], self._free(f"{name}.real"))
        return self.floats[name]

    def _free(self, name: str) -> str:
        while name in self.reserved or name in self.target.types:
            name += "_"
        return name

    def _output(self, name: str) -> str:
        """The float tensor that the caller gets: the dequantized activation, or what was never quantized."""
        if name in self.source.constants:
            return self._float_constant(name)
        if self.source.types[name].dtype != "float32":
            return self.names[name]
        if name in (entry.name for entry in self.source.inputs):
            # An input that comes back goes through the network's integers.
            self._integers(name)
            self.floats.pop(name, None)
        return self._real(name)

    def _convert(self, node: Node) -> None:
        handler = _HANDLERS.get(type(node.op))
        if handler is None:
            raise QuantizationError(f"{node.describe()} has no integer form")
        if node.output in self.reals:
            self._float_weighted(node)
            return
        if isinstance(node.op, ops.Real):
            integers = self.names[node.inputs[0]]
            self.floats[node.output] = self.target.add_node(node.op, [integers], node.output, FLOAT32, node.source)
            return
        if isinstance(node.op, ops.Dequantize) and self.types[node.output] == self.source.types[node.inputs[0]]:
            self.names[node.output] = self._integers(node.inputs[0])
            return
        op, inputs = handler(self, node)
        type_ = self.types[node.output] if self.source.types[node.output].dtype == "float32" else (
            self.source.types[node.output]
        )  # fmt: skip
        self.names[node.output] = self.target.add_node(op, inputs, node.output, type_, node.source)

    def _plain(self, node: Node) -> tuple[ops.AnyOp, list[str]]:
        """Operands keep their own types; float constants become int16, precise enough beside any activation."""
        return node.op, [self._operand(name) for name in node.inputs]

    def _operand(self, name: str) -> str:
        value = self.source.constants.get(name)
        if value is None:
            return self._integers(name)
        if value.dtype != np.float32:
            return self._constant(name, value, None)
        return self._quantized_constant(name, _symmetric16(1.0, value))

    def _moving(self, node: Node) -> tuple[ops.AnyOp, list[str]]:
        """Constants that move among activations take the activations' type."""
        moved = moved_inputs(node)
        inputs = []
        for position, name in enumerate(node.inputs):
            value = self.source.constants.get(name)
            if value is None:
                inputs.append(self._integers(name))
            elif position < len(moved) and value.dtype == np.float32:
                inputs.append(self._quantized_constant(name, self.types[node.output]))
            else:
                inputs.append(self._constant(name, value, None))
        return node.op, inputs

    def _either(self, node: Node) -> tuple[ops.AnyOp, list[str]]:
        return self._moving(node) if moves(node) else self._plain(node)

    def _weighted(self, node: Node) -> tuple[ops.AnyOp, list[str]]:
        source = self._activation_type(node, node.inputs[0])
        if node.inputs[1] not in self.source.constants:
            raise QuantizationError(f"{node.describe()}: its weight is not a constant")
        weight, bias = self.weights[node.output], self.biases.get(node.output)
        scale = scale_of(source)
        if bias is not None:
            weight = fit_bias(self.source.constants[node.inputs[1]], weight, bias, scale)
        weight = fit_sums(self.source.constants[node.inputs[1]], weight, bias, source)
        inputs = [self._integers(node.inputs[0]), self._constant(node.inputs[1], weight.values, weight.quantization())]
        if bias is not None:
            values = quantize_bias(bias, scale, weight.scale, source.dtype)
            name = node.inputs[2] if len(node.inputs) > 2 else f"{node.inputs[1]}.bias"
            inputs.append(self._constant(name, values, None))
        return node.op, inputs

    def _float_weighted(self, node: Node) -> None:
        """A layer that takes and gives float32."""
        weight, bias = self.weights[node.output], self.biases.get(node.output)
        quantization = None if weight.values.dtype == np.float32 else weight.quantization()
        inputs = [self._real(node.inputs[0]), self._constant(node.inputs[1], weight.values, quantization)]
        if bias is not None:
            name = node.inputs[2] if len(node.inputs) > 2 else f"{node.inputs[1]}.bias"
            inputs.append(self._constant(name, bias, None))
        op = self.plan.multiplied(node)
        self.floats[node.output] = self.target.add_node(op, inputs, node.output, FLOAT32, node.source)

    def _activation_type(self, node: Node, name: str) -> TensorType:
        if name not in self.types:
            raise QuantizationError(f"{node.describe()}: {name!r} is not a quantized activation")
        return self.types[name]

    def _pointwise(self, node: Node) -> tuple[ops.AnyOp, list[str]]:
        if not isinstance(node.op, ops.Pointwise):
            raise QuantizationError(f"{node.describe()} is no pointwise function")
        param = self.source.constants[node.inputs[1]] if len(node.inputs) > 1 else None
        source = self._activation_type(node, node.inputs[0])
        if param is not None and source.dtype == "int16" and node.op.program == PRELU:
            return self._prelu(node, param)
        op = self.tables.get(node.output, node.op)
        # What counts zeros and ones is int64, as in the float graph.
        target = self.types.get(node.output) or self.source.types[node.output]
        table = pointwise_table(op, source, target, param)
        axis = node.op.axis if param is not None else None
        return ops.Table(axis=axis), [
            self._integers(node.inputs[0]),
            self._constant(f"{node.output}.table", table, None),
        ]

    def _prelu(self, node: Node, slopes: np.ndarray) -> tuple[ops.AnyOp, list[str]]:
        """x + (slope - 1) min(x, 0): a table of 16 bits would have 65536 entries for every channel."""
        x, name, source = self._integers(node.inputs[0]), node.output, self.types[node.inputs[0]]
        trailing = (1,) * (len(self._shapes[node.inputs[0]]) - 2)
        below = (slopes - 1).reshape(-1, *trailing)
        zero = self._constant(f"{name}.zero", np.zeros(1, np.int16), source.quantization)
        factors = _symmetric16(1.0, below)
        weights = self._constant(f"{name}.slope", quantize_array(below, factors), factors.quantization)
        product = _symmetric16(32768 * scale_of(source), below)
        negative = self.target.add_node(
            ops.Binary("min"), [x, zero], self._free(f"{name}.negative"), source, node.source
        )
        bent = self._free(f"{name}.bent")
        self.target.add_node(ops.Binary("mul"), [negative, weights], bent, product, node.source)
        return ops.Binary("add"), [x, bent]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor at the example size."""
        return infer_shapes(self.source, example_shapes(self.source))

    def _requantized(self, node: Node) -> tuple[ops.AnyOp, list[str]]:
        """An input's integers where they need another scale, to be joined with others or because a scheme says so."""
        return ops.Requantize(), [self._integers(node.inputs[0])]

    def _softmax(self, node: Node) -> tuple[ops.AnyOp, list[str]]:
        table = softmax_table(self._activation_type(node, node.inputs[0]))
        return node.op, [self._integers(node.inputs[0]), self._constant(f"{node.output}.table", table, None)]

    def _normalize(self, node: Node) -> tuple[ops.AnyOp, list[str]]:
        return node.op, [self._integers(node.inputs[0]), *(self._float_constant(name) for name in node.inputs[1:])]

    def _float_constant(self, name: str) -> str:
        return self._constant(name, self.source.constants[name], None)

    def _quantized_constant(self, name: str, type: TensorType) -> str:
        return self._constant(name, quantize_array(self.source.constants[name], type), type.quantization)

    def _constant(self, name: str, value: np.ndarray, quantization: Quantization | None) -> str:
        """Store a constant once, however many nodes read the same integers at the same scale."""
        scales = b"" if quantization is None else repr((quantization.scale, quantization.zero_point)).encode()
        key = (name, hashlib.sha256(value.dtype.name.encode() + scales + value.tobytes()).digest())
        if key not in self.shared:
            taken = name in self.source.types and name not in self.source.constants
            self.shared[key] = self.target.add_constant(f"{name}.constant" if taken else name, value, quantization)
        return self.shared[key]


def _symmetric16(factor: float, values: np.ndarray) -> TensorType:
    """int16 for `factor` times each of `values`."""
    largest = factor * float(np.abs(values).max(initial=0.0))
    return activation_type((-largest, largest), 16)


_Handler = Callable[[_Converter, Node], tuple[ops.AnyOp, list[str]]]
_HANDLERS: dict[type, _Handler] = {
    ops.Conv: _Converter._weighted, ops.ConvTranspose: _Converter._weighted, ops.Linear: _Converter._weighted,
    ops.MatMul: _Converter._plain, ops.Binary: _Converter._plain, ops.Pointwise: _Converter._pointwise,
    ops.Concat: _Converter._moving, ops.Slice: _Converter._moving, ops.Reshape: _Converter._moving,
    ops.Transpose: _Converter._moving, ops.Expand: _Converter._moving, ops.Pad: _Converter._moving,
    ops.MaxPool: _Converter._moving, ops.Gather: _Converter._moving, ops.Reduce: _Converter._either,
    ops.Resize: _Converter._either, ops.AveragePool: _Converter._plain, ops.AdaptivePool: _Converter._either,
    ops.Softmax: _Converter._softmax, ops.LayerNorm: _Converter._normalize, ops.GroupNorm: _Converter._normalize,
    ops.ArgMax: _Converter._plain, ops.Dequantize: _Converter._requantized, ops.Requantize: _Converter._requantized,
    ops.GatherElements: _Converter._moving, ops.TopK: _Converter._plain, ops.CumSum: _Converter._plain,
    ops.IntBinary: _Converter._plain, ops.Real: _Converter._plain, ops.GridSample: _Converter._plain,
}  # fmt: skip
