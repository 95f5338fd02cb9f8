"""From the exported ATen program to a float graph: constants evaluated, in-place operators resolved, sources kept."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from kvant.capture import operators as _operators  # noqa: F401  (fills the registry)
from kvant.capture import registry
from kvant.capture.aliases import stale_reads
from kvant.capture.builder import Activation, Builder, Operand, Size, input_type, to_numpy_safe
from kvant.capture.export import WRAPPED, Export, channel_axis, decompose, decompositions
from kvant.capture.ramps import Ramp, counted, of_ramps, ramp
from kvant.capture.registry import UnsupportedError
from kvant.capture.source import module_path, output_name, source_of, user_line
from kvant.capture.structure import Arguments
from kvant.capture.symbols import NotExpressibleError, Symbols
from kvant.errors import CaptureError, UnsupportedOperatorError
from kvant.graph import Graph

# Checks of the program on itself; the graph has its own.
_IGNORED = ("aten._assert", "aten.sym_constrain_range", "aten._assert_tensor_metadata", "aten._assert_async")
_READ_OUT = ("aten.item", "aten._local_scalar_dense")
# What to do about operators that models of whole families have and graphs cannot.
_ADVICE = {
    "nonzero": "what is chosen by its value, so that its size depends on data, must be chosen outside the model",
    "grid_sampler_3d": "sampling of volumes; images (N, C, H, W) are sampled",
}
_MAX_DECOMPOSITIONS = 4
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_NUMBERS = (*_SYMBOLIC, int, float, bool)


class TooDynamicError(CaptureError):
    """The program cannot become a graph with these dynamic dimensions; fixed ones may help."""


class _Missing:
    """Stands for what an unsupported operator would have returned, so that all of them are found in one pass."""


_MISSING = _Missing()


def translate(export: Export, arguments: Arguments) -> Graph:
    """The graph of an exported program.

    An operator without a handler is replaced by torch's own decomposition of it where there is one.

    Raises:
        UnsupportedOperatorError: listing every operator that is left.
        TooDynamicError: an operator is supported for fixed sizes only.
    """
    program = export.program
    for _ in range(_MAX_DECOMPOSITIONS):
        unknown = _decomposable(program)
        if not unknown and not stale_reads(program.graph):
            break
        program = decompose(program, unknown)
    return _Translation(program, arguments).run(export)


def _decomposable(program: ExportedProgram) -> list[Any]:
    targets = {node.target for node in program.graph.nodes if _computes_tensors(node)}
    unknown = [target for target in targets if registry.find(_functional_name(target)) is None]
    if not unknown:
        return []
    table = decompositions()
    functional = {target: _functional(target) for target in unknown}
    return sorted({twin for twin in functional.values() if twin in table}, key=str)


def _computes_tensors(node: fx.Node) -> bool:
    sizes = isinstance(node.meta.get("val"), _NUMBERS) or str(node.target).startswith(_IGNORED)
    return isinstance(node.target, torch._ops.OpOverload) and not sizes


def _functional(target: Any) -> Any:
    """The twin of an in-place operator that returns its result instead: ``aten.relu_`` -> ``aten.relu``."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    if not target._schema.is_mutable or not name.endswith("_"):
        return target
    packet = getattr(torch.ops.aten, name.rstrip("_"), None)
    return getattr(packet, overload, target)


def _functional_name(target: Any) -> str:
    return str(_functional(target)).removeprefix("aten.")


class _Translation:
    """One pass over an exported program."""

    def __init__(self, program: ExportedProgram, arguments: Arguments) -> None:
        self._program = program
        self._arguments = arguments
        self._symbols = Symbols()
        self._builder = Builder(Graph(), self._symbols)
        self._unsupported: list[str] = []
        self._static_helps = False

    def run(self, export: Export) -> Graph:
        """The whole translation."""
        outputs = self._interpret(self._program.graph_module, self._inputs())
        self._check_mutations()
        if self._unsupported and self._static_helps and export.level != "none":
            raise TooDynamicError("\n".join(self._unsupported))
        if self._unsupported:
            raise UnsupportedOperatorError(list(dict.fromkeys(self._unsupported)))
        graph = self._builder.graph
        graph.outputs = tuple(self._output(value) for value in outputs)
        graph.structure = export.structure
        graph.example = dict(self._symbols.example)
        return graph

    def _inputs(self) -> list[Any]:
        """A value for every placeholder: an activation for what the caller gives, a tensor for weights."""
        values: list[Any] = []
        given = iter(zip(self._arguments.names, self._arguments.tensors, strict=True))
        nodes = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(nodes, self._program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                values.append(self._declare_input(*next(given), node.meta["val"]))
            else:
                values.append(self._weight(str(spec.target)))
        return values

    def _declare_input(self, name: str, example: Tensor, traced: Any) -> Activation:
        names = _axis_names(example)
        sizes = tuple(_size(size) for size in traced.shape)
        try:
            shape = tuple(
                self._symbols.declare(size, axis_name, actual)
                for size, axis_name, actual in zip(sizes, names, example.shape, strict=True)
            )
        except NotExpressibleError as error:
            raise TooDynamicError(str(error)) from error
        if any(isinstance(dim, int) and dim != size for dim, size in zip(shape, example.shape, strict=True)):
            raise TooDynamicError(f"input {name!r} is fixed to another size than the example's: {shape}")
        self._builder.graph.add_input(name, shape, input_type(example.dtype))
        if example.dtype == torch.int64 and bool(((example == 0) | (example == 1)).all()):
            self._builder.masks.add(name)
        return Activation(name, sizes, example.dtype)

    def _weight(self, target: str) -> Tensor:
        state, constants = self._program.state_dict, self._program.constants
        value: Tensor = state[target] if target in state else constants[target]
        self._builder.name_constant(value, target.removeprefix(f"{WRAPPED}."))
        return value

    def _check_mutations(self) -> None:
        kinds = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
        for spec in self._program.graph_signature.output_specs:
            if spec.kind in kinds:
                name = str(spec.target).removeprefix(f"{WRAPPED}.")
                self._unsupported.append(f"forward() changes the buffer {name!r}; a graph keeps no state between calls")

    def _interpret(self, module: fx.GraphModule, given: Sequence[Any]) -> list[Any]:
        values: dict[fx.Node, Any] = {}
        placeholders = iter(given)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(placeholders)
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(module)
            elif node.op == "call_function":
                values[node] = self._call(node, values)
            elif node.op == "output":
                skipped = self._mutation_outputs() if module is self._program.graph_module else 0
                return list(_resolve(node.args[0], values))[skipped:]
        raise CaptureError("the exported program has no output")

    def _mutation_outputs(self) -> int:
        return sum(spec.kind != OutputKind.USER_OUTPUT for spec in self._program.graph_signature.output_specs)

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        target = node.target
        result = node.meta.get("val")
        if str(target).startswith(_READ_OUT):
            return self._refuse(node, str(target), "a number is read out of a tensor, so what follows depends on data")
        if isinstance(result, _NUMBERS):
            return result
        if str(target).startswith(_IGNORED):
            return None
        args, kwargs = _resolve(node.args, values), _resolve(node.kwargs, values)
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._region(node, args)
        if not isinstance(target, torch._ops.OpOverload):
            return self._part(node, args, kwargs)
        value = self._operator(node, _functional(target), args, kwargs)
        if target._schema.is_mutable and isinstance(node.args[0], fx.Node):
            if node.args[0].op == "placeholder" and isinstance(values[node.args[0]], Tensor):
                return self._refuse(node, str(target), "it changes a buffer, and a graph keeps no state between calls")
            values[node.args[0]] = value
        return value

    def _part(self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What Python's own operators make of values, such as one of the results of an operator that has several."""
        if _holds(_MISSING, (args, kwargs)):
            return _MISSING
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if value is None and node.users:
            maker = node.args[0] if isinstance(node.args[0], fx.Node) else node
            return self._refuse(maker, str(maker.target), f"its result number {args[1] + 1} is used")
        return value

    def _region(self, node: fx.Node, args: Sequence[Any]) -> Any:
        """The body of ``with torch.no_grad():`` and its like, which torch keeps as a program of its own."""
        bodies = [index for index, value in enumerate(args) if isinstance(value, fx.GraphModule)]
        # Arguments of an autocast: the device, the dtype, whether it is on, whether it keeps what it cast.
        no_cast = "autocast" in str(node.target) and (args[0] != "cpu" or not args[2])
        if not (no_cast or "set_grad_enabled" in str(node.target)) or len(bodies) != 1:
            return self._refuse(node, str(node.target), "")
        return self._interpret(args[bodies[0]], args[bodies[0] + 1 :])

    def _operator(self, node: fx.Node, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        name = str(target)
        handler = registry.find(name.removeprefix("aten.")) if name.startswith("aten.") else None
        random = handler is None and torch.Tag.nondeterministic_seeded in target.tags
        constant = not _holds_type(Activation | Ramp, (args, kwargs)) and not _holds_type(_SYMBOLIC, (args, kwargs))
        if constant and not random and not _holds(_MISSING, (args, kwargs)):
            return _evaluate(target, args, kwargs)
        if _holds_type(Ramp, (args, kwargs)):
            handler = partial(self._of_ramps, name, handler)
        if handler is None or random:
            # What is made of sizes alone is a constant once they are fixed.
            self._static_helps |= not random and not _holds_type(Activation, (args, kwargs))
            return self._refuse(node, name, "its result is random" if random else _ADVICE.get(_base(name), ""))
        if _holds(_MISSING, (args, kwargs)):
            return _MISSING
        try:
            return self._handle(node, handler, _bind(target, args, kwargs))
        except UnsupportedError as error:
            # Constants that meet a free size can be computed once the size is fixed.
            self._static_helps |= error.static or not _holds_type(Activation, (args, kwargs))
            return self._refuse(node, name, str(error))

    def _of_ramps(
        self, name: str, handler: Callable[..., Any] | None, builder: Builder, arguments: Mapping[str, Any]
    ) -> Any:
        """What is counted along a free size: mostly little is asked of it, else it is computed."""
        try:
            return of_ramps(builder, name, arguments)
        except UnsupportedError:
            if handler is None:
                raise
        self._static_helps = True  # if something else refuses what is computed here
        return handler(builder, arguments=_replaced(arguments, partial(counted, builder)))

    def _handle(self, node: fx.Node, handler: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        results = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
        shapes = [tuple(_size(size) for size in entry.shape) for entry in results if isinstance(entry, Tensor)]
        dtype = next(entry.dtype for entry in results if isinstance(entry, Tensor))
        source = source_of(node)
        self._builder.begin(output_name(node), source, shapes, dtype)
        counted = ramp(node.target, arguments, shapes[0])
        return counted or handler(self._builder, arguments=arguments)

    def _refuse(self, node: fx.Node, operator_name: str, reason: str) -> _Missing:
        path = module_path(node)
        where = f" in module path {path!r}" if path else ""
        line = user_line(node)
        text = f"{operator_name}{where}" + (f" at {line}" if line else "")
        self._unsupported.append(f"{text} ({reason})" if reason else text)
        return _MISSING

    def _output(self, value: Operand) -> str:
        graph = self._builder.graph
        if isinstance(value, Activation):
            return value.name
        try:
            return graph.add_constant("output", to_numpy_safe(value).numpy().copy())
        except UnsupportedError as error:
            raise CaptureError(f"the model returns {error}, which kvant cannot store") from error


def _evaluate(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operator on constants; a constant never changes, so in-place operators get a copy."""
    if target._schema.is_mutable:
        args = [value.clone() if isinstance(value, Tensor) else value for value in args]
    with torch.no_grad():
        return target(*args, **kwargs)


def _base(name: str) -> str:
    """``topk`` of ``aten.topk.default``."""
    return name.split(".")[1]


def _size(size: Any) -> Size:
    if isinstance(size, torch.SymInt) and size.node.expr.is_Integer:
        return int(size.node.expr)
    return size  # type: ignore[no-any-return]


def _axis_names(example: Tensor) -> list[str]:
    """What the symbols of an input are called, axis by axis."""
    rank = example.dim()
    if rank == 4:
        last = channel_axis(example) == 3
        return ["batch", "height", "width", "channels"] if last else ["batch", "channels", "height", "width"]
    names = ["batch", *[f"size_{axis}" for axis in range(1, rank)]]
    if rank in (2, 3):
        # (N, length), (N, length, features) or (N, channels, length): what is not a length turns out to be fixed.
        names[1:] = ["length"] * (rank - 1)
    return names[:rank]


def _resolve(value: Any, values: Mapping[fx.Node, Any]) -> Any:
    """fx nodes in nested arguments replaced by their values."""
    if isinstance(value, fx.Node):
        return values[value]
    if isinstance(value, tuple | list):
        return [_resolve(entry, values) for entry in value]
    if isinstance(value, dict):
        return {key: _resolve(entry, values) for key, entry in value.items()}
    return value


def _holds_type(kind: Any, value: Any) -> bool:
    return _any(value, lambda entry: isinstance(entry, kind))


def _holds(wanted: object, value: Any) -> bool:
    return _any(value, lambda entry: entry is wanted)


def _replaced(value: Any, change: Callable[[Ramp], Activation]) -> Any:
    """Ramps in nested arguments changed."""
    if isinstance(value, tuple | list):
        return [_replaced(entry, change) for entry in value]
    if isinstance(value, dict):
        return {key: _replaced(entry, change) for key, entry in value.items()}
    return change(value) if isinstance(value, Ramp) else value


def _any(value: Any, test: Callable[[Any], bool]) -> bool:
    if isinstance(value, tuple | list):
        return any(_any(entry, test) for entry in value)
    if isinstance(value, dict):
        return any(_any(entry, test) for entry in value.values())
    return test(value)


def _bind(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by the names of the operator's schema, defaults included."""
    bound: dict[str, Any] = {}
    for index, argument in enumerate(target._schema.arguments):
        if index < len(args) and not argument.kwarg_only:
            bound[argument.name] = args[index]
        else:
            bound[argument.name] = kwargs.get(argument.name, argument.default_value)
    return bound
