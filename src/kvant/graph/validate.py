"""What must hold in every graph, whoever made it: checked after each stage, and before a file's graph is used."""

from __future__ import annotations

import math

import numpy as np

from kvant.errors import GraphError
from kvant.graph import ops
from kvant.graph.dims import symbols
from kvant.graph.graph import FLOAT32, Graph, Node, Quantization, TensorType
from kvant.graph.infer import example_shapes, infer_shapes

MAX_NAME_BYTES = 256
MAX_COUNT = 65_536
_LARGEST_SCALE = float(np.finfo(np.float32).max)
_WEIGHT_TYPES = ("int8", "int16")
_ACTIVATION_TYPES = ("uint8", "int16")
# Two products of such a weight and an int16 activation fit int32.
_LARGEST_WEIGHT = 2**15 - 1


def validate(graph: Graph) -> None:
    """Check names, order, references, types, scales and, at the example size, shapes.

    Raises:
        GraphError: naming the tensor or the node that breaks a rule (ShapeError where shapes do not fit).
    """
    _check_counts(graph)
    _check_constants(graph)
    _check_order(graph)
    for name, type in graph.types.items():
        _check_type(graph, name, type)
    for node in graph.nodes:
        _check_node(graph, node)
    _check_symbols(graph)
    infer_shapes(graph, example_shapes(graph))


def _check_counts(graph: Graph) -> None:
    for label, count in (("nodes", len(graph.nodes)), ("tensors", len(graph.types))):
        if count > MAX_COUNT:
            raise GraphError(f"the graph has {count} {label}, at most {MAX_COUNT} are allowed")
    if not graph.inputs or not graph.outputs:
        raise GraphError("a graph needs at least one input and one output")
    for name in graph.types:
        if not name or len(name.encode()) > MAX_NAME_BYTES:
            raise GraphError(f"tensor name {name[:40]!r}... must have 1 to {MAX_NAME_BYTES} bytes")


def _check_constants(graph: Graph) -> None:
    for name, value in graph.constants.items():
        if name not in graph.types:
            raise GraphError(f"constant {name!r} has no type")
        if value.dtype != graph.types[name].numpy:
            raise GraphError(f"constant {name!r} holds {value.dtype}, its type says {graph.types[name].dtype}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise GraphError(f"constant {name!r} holds NaN or infinity")


def _check_order(graph: Graph) -> None:
    """Each tensor is defined exactly once and before it is read; that also rules out cycles."""
    known = set(graph.constants)
    for name in (entry.name for entry in graph.inputs):
        if name in known:
            raise GraphError(f"tensor {name!r} is defined twice")
        known.add(name)
    for node in graph.nodes:
        for name in node.inputs:
            if name not in known:
                raise GraphError(f"{node.describe()} reads {name!r}, which is not defined before it")
        if node.output in known:
            raise GraphError(f"tensor {node.output!r} is defined twice")
        known.add(node.output)
    for name in graph.outputs:
        if name not in known:
            raise GraphError(f"output {name!r} is not defined")
    if known != set(graph.types):
        odd = min(known ^ set(graph.types))
        raise GraphError(f"tensor {odd!r} has a type or a definition, but not both")
    _check_structure(graph, graph.structure, 0)


def _check_structure(graph: Graph, structure: object, depth: int) -> None:
    if depth > 16:
        raise GraphError("the output structure is nested more than 16 deep")
    if isinstance(structure, bool) or not isinstance(structure, int | list | dict):
        raise GraphError(f"the output structure holds {structure!r}")
    if isinstance(structure, int):
        if not 0 <= structure < len(graph.outputs):
            raise GraphError(f"the output structure names output {structure} of {len(graph.outputs)}")
        return
    children = structure.values() if isinstance(structure, dict) else structure
    for child in children:
        _check_structure(graph, child, depth + 1)


def _check_type(graph: Graph, name: str, type: TensorType) -> None:
    quantization = type.quantization
    if quantization is None:
        return
    if type.dtype not in (*_ACTIVATION_TYPES, *_WEIGHT_TYPES, "int32", "int64"):
        raise GraphError(f"tensor {name!r} of type {type.dtype} cannot carry a scale")
    _check_scales(name, quantization)
    _check_narrow(graph, name, type, quantization)
    low, high = type.integer_range()
    if not low <= quantization.zero_point <= high:
        raise GraphError(f"tensor {name!r}: zero point {quantization.zero_point} is outside {low}..{high}")
    if type.dtype == "int16" and quantization.zero_point != 0:
        raise GraphError(f"tensor {name!r} is int16 with zero point {quantization.zero_point}; int16 has zero point 0")
    if quantization.axis is None:
        return
    if name not in graph.constants:
        raise GraphError(f"activation {name!r} has one scale per channel; activations take one scale")
    shape = graph.constants[name].shape
    if not 0 <= quantization.axis < len(shape) or shape[quantization.axis] != len(quantization.scale):
        raise GraphError(f"tensor {name!r} of shape {shape} has {len(quantization.scale)} scales")


def _check_narrow(graph: Graph, name: str, type: TensorType, quantization: Quantization) -> None:
    """What is said to have few bits has them: sums of products are proven to fit by that."""
    bits, group, value = quantization.bits, quantization.group, graph.constants.get(name)
    if group is not None and (value is None or type.dtype not in _WEIGHT_TYPES or group < 1):
        raise GraphError(f"tensor {name!r} has groups of {group}; int8 and int16 constants have groups of at least 1")
    if bits is None:
        return
    if type.dtype != "uint8" or not 1 <= bits <= 7:
        raise GraphError(f"tensor {name!r} is {type.dtype} of {bits} bits; uint8 may have 1 to 7")
    if any(entry.name == name for entry in graph.inputs):
        raise GraphError(f"input {name!r} has {bits} bits; what callers give has the whole range of its type")
    if value is not None and value.max(initial=0) > type.integer_range()[1]:
        raise GraphError(f"constant {name!r} of {bits} bits holds {value.max()}")


def _check_scales(name: str, quantization: Quantization) -> None:
    if quantization.axis is None and len(quantization.scale) != 1:
        raise GraphError(f"tensor {name!r} has {len(quantization.scale)} scales and no axis")
    for scale in quantization.scale:
        if not 0 < scale <= _LARGEST_SCALE or float(np.float32(scale)) != scale:
            raise GraphError(f"tensor {name!r} has scale {scale!r}, expected a finite positive float32")


def _check_node(graph: Graph, node: Node) -> None:
    low, high = ops.ARITY[type(node.op)]
    if len(node.inputs) < low or (high is not None and len(node.inputs) > high):
        raise GraphError(f"{node.describe()} has {len(node.inputs)} inputs")
    _check_clamp(node)
    if isinstance(node.op, ops.Linear) and node.op.dynamic and graph.types[node.inputs[0]].dtype != "float32":
        raise GraphError(f"{node.describe()} has scales at run time, but takes {graph.types[node.inputs[0]].dtype}")
    _check_attributes(node)
    given = [graph.types[name] for name in node.inputs]
    output = graph.types[node.output]
    if isinstance(node.op, ops.MOVES) or (isinstance(node.op, ops.Resize) and node.op.mode != "linear"):
        moved = given if isinstance(node.op, ops.Concat) else given[:1]
        if any(entry != output for entry in moved):
            raise GraphError(f"{node.describe()} only moves integers, so its types must be equal: {given} -> {output}")
    if isinstance(node.op, ops.Reduce) and node.op.axes != tuple(sorted(set(node.op.axes))):
        raise GraphError(f"{node.describe()}: axes={node.op.axes} must be sorted, each once")
    _check_integers(node, given, output)
    if isinstance(node.op, ops.Table) and output.quantization is not None:
        _check_table(graph, node, output)
    if isinstance(node.op, ops.WEIGHTED) and given[0].quantization is not None:
        _check_weighted(graph, node, given, output)
    elif isinstance(node.op, ops.WEIGHTED) and given[1].dtype != "float32":
        _check_float_weighted(graph, node, given, output)


def _check_integers(node: Node, given: list[TensorType], output: TensorType) -> None:
    """Places and counts are int64, and nothing else is where they belong."""
    wanted: list[TensorType] = []
    if isinstance(node.op, ops.COUNTS):
        wanted = [output, *(given if isinstance(node.op, ops.IntBinary) else ())]
    elif isinstance(node.op, ops.Real):
        wanted = given
        if output != FLOAT32:
            raise GraphError(f"{node.describe()} gives float32, not {output}")
    elif isinstance(node.op, ops.GatherElements):
        wanted = given[1:]
    elif isinstance(node.op, ops.CumSum) and "int64" in (given[0].dtype, output.dtype):
        wanted = [given[0], output]
    if any(entry.dtype != "int64" or entry.quantization is not None for entry in wanted):
        raise GraphError(f"{node.describe()} wants int64 for places and counts, not {given} -> {output}")


def _check_float_weighted(graph: Graph, node: Node, given: list[TensorType], output: TensorType) -> None:
    """Integer weights of a layer that takes and gives float32."""
    weight = given[1]
    if any(type.dtype != "float32" for type in (given[0], output, *given[2:])):
        raise GraphError(f"{node.describe()} takes {given[0].dtype} without a scale, so all but its weight is float32")
    if weight.dtype not in _WEIGHT_TYPES or weight.quantization is None:
        raise GraphError(
            f"{node.describe()}: its weight is {weight.dtype}, expected float32, or int8 or int16 with scales"
        )
    if weight.quantization.axis not in (None, 0) or weight.quantization.zero_point != 0:
        raise GraphError(f"{node.describe()}: weights have zero point 0 and scales along axis 0")
    if any(name not in graph.constants for name in node.inputs[1:]):
        raise GraphError(f"{node.describe()}: weight and bias must be constants")
    if weight.dtype == "int16" and graph.constants[node.inputs[1]].min(initial=0) < -_LARGEST_WEIGHT:
        raise GraphError(f"{node.describe()}: int16 weights reach from {-_LARGEST_WEIGHT} to {_LARGEST_WEIGHT}")


def _check_table(graph: Graph, node: Node, output: TensorType) -> None:
    table, (low, high) = graph.constants.get(node.inputs[1]), output.integer_range()
    if table is not None and table.size and not (low <= table.min() and table.max() <= high):
        raise GraphError(f"{node.describe()}: its table holds integers outside {low}..{high}")


def _check_clamp(node: Node) -> None:
    clamp = getattr(node.op, "clamp", None)
    if clamp is None:
        return
    low, high = clamp
    if any(bound is not None and not math.isfinite(bound) for bound in clamp):
        raise GraphError(f"{node.describe()} clamps to {clamp}, which is not finite")
    if low is not None and high is not None and low > high:
        raise GraphError(f"{node.describe()} clamps to {clamp}: the bounds are swapped")


# Attributes that must be at least 1, and those that must not be negative.
_POSITIVE = ("strides", "dilations", "kernel", "groups", "step", "rank", "divisor")
_NOT_NEGATIVE = ("pads_begin", "pads_end", "output_padding", "axis", "axes", "permutation")
_MAX_ATTRIBUTE = 2**31 - 1


def _check_attributes(node: Node) -> None:
    lengths = set()
    for field in node.op.__struct_fields__:
        value = getattr(node.op, field)
        low = 1 if field in _POSITIVE else 0 if field in _NOT_NEGATIVE else None
        if low is None or value is None:
            continue
        entries = value if isinstance(value, tuple) else (value,)
        if any(not low <= entry <= _MAX_ATTRIBUTE for entry in entries):
            raise GraphError(f"{node.describe()}: {field}={value} is out of range")
        if isinstance(value, tuple) and field not in ("axes", "permutation"):
            lengths.add(len(value))
    if len(lengths) > 1:
        raise GraphError(f"{node.describe()}: its attributes have different lengths")
    if isinstance(node.op, ops.Resize) and any(not 0 < scale < 1e6 for scale in node.op.scale or ()):
        raise GraphError(f"{node.describe()}: scale={node.op.scale} is out of range")
    eps = getattr(node.op, "eps", 0.0)
    if not (math.isfinite(eps) and eps >= 0):
        raise GraphError(f"{node.describe()}: eps={eps} is out of range")


def _check_weighted(graph: Graph, node: Node, given: list[TensorType], output: TensorType) -> None:
    weight = given[1]
    if given[0].dtype not in _ACTIVATION_TYPES or weight.dtype not in _WEIGHT_TYPES or weight.quantization is None:
        raise GraphError(f"{node.describe()} takes {given[0].dtype} and {weight.dtype}: not a supported integer pair")
    if weight.quantization.axis not in (None, 0) or weight.quantization.zero_point != 0:
        raise GraphError(f"{node.describe()}: weights have zero point 0 and scales along axis 0")
    if output.quantization is None:
        raise GraphError(f"{node.describe()} has integer inputs, but its output has no scale")
    biases = ("int32",) if given[0].dtype == "uint8" else ("int32", "int64")
    if len(given) > 2 and given[2].dtype not in biases:
        raise GraphError(
            f"{node.describe()}: with {given[0].dtype} inputs the bias is {' or '.join(biases)}, not {given[2].dtype}"
        )
    if node.inputs[1] not in graph.constants or any(name not in graph.constants for name in node.inputs[2:]):
        raise GraphError(f"{node.describe()}: weight and bias must be constants")
    if weight.dtype == "int16" and graph.constants[node.inputs[1]].min(initial=0) < -_LARGEST_WEIGHT:
        raise GraphError(f"{node.describe()}: int16 weights reach from {-_LARGEST_WEIGHT} to {_LARGEST_WEIGHT}")


def _check_symbols(graph: Graph) -> None:
    declared: set[str] = set()
    for entry in graph.inputs:
        for dim in entry.shape:
            if isinstance(dim, tuple) and len(dim) != 1:
                raise GraphError(f"input {entry.name!r} has a computed dimension; an int or a symbol is expected")
            declared |= symbols(dim)
    if declared != set(graph.example):
        raise GraphError(f"example sizes are given for {sorted(graph.example)}, the inputs use {sorted(declared)}")
    if any(not 1 <= size <= _MAX_ATTRIBUTE for size in graph.example.values()):
        raise GraphError(f"example sizes {graph.example} must be positive")
