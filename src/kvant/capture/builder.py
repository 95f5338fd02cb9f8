"""What operator handlers work with: values during translation, and the builder that appends nodes to the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor

from kvant.capture.registry import UnsupportedError
from kvant.capture.symbols import NotExpressibleError, Symbols
from kvant.graph import Dim, Graph, Quantization, Source, TensorType, ops
from kvant.graph.ops import AnyOp, Step

Size = int | torch.SymInt
# Infinity in an additive mask becomes this: the same softmax, and no infinity in the graph.
MASKED = -1e4
# Inputs of these types hold numbers, such as pixels or samples of sound: they are the integers of a scale of 1.
NUMBERS = (torch.uint8, torch.int16)
INTEGERS = {torch.int64: "int64", torch.int32: "int32", torch.uint8: "uint8", torch.int8: "int8", torch.int16: "int16"}


@dataclass(frozen=True)
class Activation:
    """A tensor of the graph that depends on its inputs.

    Attributes:
        name: in the graph.
        shape: sizes as torch traced them, ints or symbolic.
        dtype: the type that torch gives it.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype = torch.float32

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def axis(self, index: int) -> int:
        """``index`` counted from the front."""
        return index % self.rank if self.rank else 0

    def fixed(self, axis: int) -> int:
        """The size along ``axis``, which must not be dynamic."""
        size = self.shape[axis]
        if not isinstance(size, int):
            raise UnsupportedError(f"needs a fixed size along axis {axis}", static=True)
        return size


Operand = Activation | Tensor


class Builder:
    """Appends nodes for one ATen operator after the other.

    Attributes:
        graph: what is being built.
        symbols: the names of the free sizes.
        shape: the traced shape of the current operator's (first) output.
        dtype: its type.
        shapes: the traced shapes of all outputs of an operator that returns several.
        masks: integer tensors that hold nothing but 0 and 1 in the example.
        spread: integers that were expanded, and what they were before, of the same rank.
        overwritten: of tensors in which every n-th element was overwritten, what they were, along which axis, and
            where (bool).
    """

    def __init__(self, graph: Graph, symbols: Symbols) -> None:
        self.graph = graph
        self.symbols = symbols
        self.shapes: list[tuple[Size, ...]] = []
        self.masks: set[str] = set()
        self.spread: dict[str, Activation] = {}
        self.overwritten: dict[str, tuple[Operand, int, Tensor]] = {}
        self.dtype = torch.float32
        self._source = Source()
        self._name = ""
        self._constants: dict[int, tuple[Tensor, str]] = {}
        self._names: dict[int, str] = {}
        self._reals: dict[str, Activation] = {}

    def begin(self, name: str, source: Source, shapes: list[tuple[Size, ...]], dtype: torch.dtype) -> None:
        """Start the operator whose outputs have these traced shapes."""
        self._name, self._source, self.shapes, self.dtype = name, source, shapes, dtype

    @property
    def shape(self) -> tuple[Size, ...]:
        """The traced shape of the current operator's output."""
        return self.shapes[0]

    def name_constant(self, value: Tensor, name: str) -> None:
        """Remember under which name a parameter or buffer goes into the graph."""
        self._names[id(value)] = name

    def dim(self, size: Size) -> Dim:
        """A traced size as a dimension of the graph."""
        try:
            return self.symbols.dim(size)
        except NotExpressibleError as error:
            raise UnsupportedError(str(error), static=True) from error

    def dims(self, sizes: Sequence[Size]) -> tuple[Dim, ...]:
        """Traced sizes as dimensions of the graph."""
        return tuple(self.dim(size) for size in sizes)

    def emit(self, op: AnyOp, *inputs: Operand, shape: Sequence[Size] | None = None) -> Activation:
        """Append a node. ``shape`` is the traced shape of its output, by default that of the current operator."""
        moves = isinstance(op, ops.MOVES)
        integers = isinstance(op, ops.CumSum | ops.ArgMax) and inputs[0].dtype == torch.int64
        dtype = (
            _moved_type(inputs, self.dtype) if moves
            else torch.int64 if integers or isinstance(op, ops.COUNTS) else torch.float32
        )  # fmt: skip
        if isinstance(op, ops.Concat):
            _require_alike(inputs)
        if not moves and not isinstance(op, ops.Dequantize | ops.IntBinary | ops.Real) and not integers:
            inputs = tuple(self._real(op, operand) for operand in inputs)
        names = [self._reference(operand) for operand in inputs]
        output = self.graph.fresh(self._name)
        kept = self.graph.types[names[0]] if moves and dtype in NUMBERS else _graph_type(dtype)
        self.graph.add_node(op, names, output, kept, self._source)
        if moves and all(name in self.masks for name in (names if isinstance(op, ops.Concat) else names[:1])):
            self.masks.add(output)
        return Activation(output, tuple(self.shape if shape is None else shape), dtype)

    def pointwise(self, x: Activation, *program: Step) -> Activation:
        """Append a function of ``x``'s elements; the program is written after the first step, which pushes ``x``."""
        return self.emit(ops.Pointwise((Step("x"), *program)), x, shape=x.shape)

    def counted(self, mask: Activation) -> Activation:
        """The zeros and ones of a mask as int64."""
        output = self.graph.fresh(self._name)
        self.graph.add_node(ops.Pointwise((Step("x"),)), [mask.name], output, TensorType("int64"), self._source)
        self.masks.add(output)
        return Activation(output, mask.shape, torch.int64)

    def real(self, x: Activation) -> Activation:
        """The numbers of an input of integers, or of what is computed in int64, as float32."""
        if x.name not in self._reals:
            if x.name in self.masks:
                made = self.emit(ops.Gather(0), torch.tensor([0.0, 1.0]), x, shape=x.shape)
            else:
                made = self.emit(ops.Real() if x.dtype == torch.int64 else ops.Dequantize(), x, shape=x.shape)
            self._reals[x.name] = made
        return self._reals[x.name]

    def _real(self, op: AnyOp, operand: Operand) -> Operand:
        """``operand`` as arithmetic takes it; torch computes in float32 where the result is."""
        if isinstance(operand, Tensor):
            return operand.float() if operand.dtype in INTEGERS else operand
        if operand.dtype == torch.float32:
            return operand
        if operand.dtype in (*NUMBERS, torch.int64) and self.dtype == torch.float32:
            return self.real(operand)
        if operand.dtype == torch.bool and self.dtype == torch.float32:
            return operand
        raise UnsupportedError(f"arithmetic on {_short(operand.dtype)} activations")

    def _reference(self, operand: Operand) -> str:
        if isinstance(operand, Activation):
            return operand.name
        key = id(operand)
        if key not in self._constants:
            name = self._names.get(key, f"{self._name}.constant")
            # The tensor is kept too, so that its id is not given to another one.
            self._constants[key] = (operand, self.graph.add_constant(name, to_numpy_safe(operand).numpy().copy()))
        return self._constants[key][1]


def to_numpy_safe(value: Tensor) -> Tensor:
    """A constant as the graph stores it: float32 without infinities, or an integer type."""
    value = value.detach().resolve_neg().resolve_conj()
    if value.dtype in INTEGERS:
        return value
    if value.dtype == torch.bool:
        return value.to(torch.float32)
    if not value.is_floating_point():
        raise UnsupportedError(f"a constant of type {value.dtype}")
    value = value.to(torch.float32)
    if bool(value.isnan().any()):
        raise UnsupportedError("a constant with NaN")
    if bool((value < torch.finfo(torch.float32).min / 2).any()):
        value = torch.where(value < torch.finfo(torch.float32).min / 2, MASKED, value)
    if bool(value.isinf().any()):
        raise UnsupportedError("a constant with infinity")
    return value


def _moved_type(inputs: Sequence[Operand], fallback: torch.dtype) -> torch.dtype:
    first = inputs[0]
    kept = first.dtype in INTEGERS or (isinstance(first, Activation) and first.dtype == torch.bool)
    return first.dtype if kept else torch.float32 if isinstance(first, Activation) else fallback


def _graph_type(dtype: torch.dtype) -> TensorType:
    return TensorType(INTEGERS.get(dtype, "float32"))  # type: ignore[arg-type]


def _require_alike(operands: Sequence[Operand]) -> None:
    """Refuse a join of what the graph keeps in different types."""
    kinds = {_graph_type(operand.dtype).dtype: operand.dtype for operand in operands}
    if len(kinds) > 1:
        raise UnsupportedError(
            f"a join of {' and '.join(sorted(map(_short, kinds.values())))}; convert with .float() first"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def input_type(dtype: torch.dtype) -> TensorType:
    """The type of a graph input that torch calls ``dtype``."""
    type = _graph_type(dtype)
    return replace(type, quantization=Quantization((1.0,))) if dtype in NUMBERS else type


def is_activation(value: object) -> TypeGuard[Activation]:
    """Whether ``value`` depends on the inputs."""
    return isinstance(value, Activation)


def need_activation(value: Operand, what: str) -> Activation:
    """``value``, which must depend on the inputs."""
    if not isinstance(value, Activation):
        raise UnsupportedError(f"{what} is a constant")
    return value


def need_constant(value: Operand, what: str) -> Tensor:
    """``value``, which must not depend on the inputs."""
    if isinstance(value, Activation):
        raise UnsupportedError(f"{what} is computed from the inputs, expected a constant")
    return value


def ints(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One int for each of ``rank`` axes, as torch takes one for all."""
    entries = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(entries) == 1:
        entries = entries * rank
    if any(not isinstance(entry, int) for entry in entries):
        raise UnsupportedError(f"the attribute {entries} depends on the input's size", static=True)
    return entries
