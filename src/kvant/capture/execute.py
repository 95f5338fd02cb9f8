"""Running a float graph with torch in float32: what calibration watches, and quantized results are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kvant.capture.kernels import KERNELS, Kernel, dequantizer
from kvant.errors import GraphError, InputError, ShapeError
from kvant.graph import Graph, Node, bind, ops, show_shape

Observe = Callable[[str, Tensor], Tensor | None]


class Executor:
    """A float graph made ready to run: constants are tensors, every node is a bound function.

    Later changes of the graph are not seen; make a new Executor.

    >>> executor = Executor(graph)  # doctest: +SKIP
    >>> [heat, paf] = executor.run([torch.zeros(1, 3, 368, 432)])  # doctest: +SKIP
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._constants = {name: _constant(value.copy()) for name, value in graph.constants.items()}
        self._steps = [
            (self._kernel(node, [self._constants.get(name) for name in node.inputs]), node) for node in graph.nodes
        ]
        self._dead = last_uses(graph)

    def run(self, inputs: Sequence[Tensor], observe: Observe | None = None, *, gradients: bool = False) -> list[Tensor]:
        """The graph's outputs, flat, in the order of ``graph.outputs``.

        Args:
            inputs: a tensor for each of ``graph.inputs``, in order, of its type and of a shape that fits.
            observe: called with the name and value of every activation, inputs included, as soon as it exists; what it
                returns, unless None, takes the activation's place. It must not keep the tensor without a copy.
            gradients: record what autograd needs, for activations that ``observe`` made require gradients.

        Raises:
            InputError: a wrong number of inputs, a wrong type or shape.
            ShapeError: a node's operands do not fit together at this input size.
        """
        with torch.enable_grad() if gradients else torch.inference_mode():
            return self._run(inputs, observe)

    def step(self, node: Node, values: Mapping[str, Tensor], bindings: Mapping[str, int]) -> Tensor:
        """The output of one node of the graph, or of a variant of it that reads the same constants.

        Args:
            node: the node; its operator's attributes may differ from the graph's own.
            values: the activations it reads, by name.
            bindings: sizes of the symbols, from ``bind``.
        """
        constants = [self._constants.get(name) for name in node.inputs]
        kernel = self._kernel(node, constants)
        given = [values[name] if value is None else value for name, value in zip(node.inputs, constants, strict=True)]
        return kernel(given, bindings)

    def _kernel(self, node: Node, constants: Sequence[Tensor | None]) -> Kernel:
        if isinstance(node.op, ops.Dequantize):
            return dequantizer(self.graph.types[node.inputs[0]])
        kernel = KERNELS[type(node.op)](node.op, constants)
        if isinstance(node.op, ops.Pointwise) and self.graph.types[node.output].dtype == "int64":
            return lambda given, bindings: kernel(given, bindings).to(torch.int64)
        return kernel

    def set_constant(self, name: str, value: np.ndarray) -> None:
        """Let later calls of ``step`` see ``value`` (float32, the constant's shape) for the constant ``name``."""
        self._constants[name] = _constant(value)

    def differentiate(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The constants of these names, which ``run(..., gradients=True)`` differentiates by from now on."""
        return {name: self._constants[name].requires_grad_() for name in names}

    def _run(self, inputs: Sequence[Tensor], observe: Observe | None) -> list[Tensor]:
        bindings = self.bind(inputs)
        values = dict(self._constants)
        for entry, value in zip(self.graph.inputs, inputs, strict=True):
            values[entry.name] = _seen(observe, entry.name, value)
        for (kernel, node), dead in zip(self._steps, self._dead, strict=True):
            try:
                value = kernel([values[name] for name in node.inputs], bindings)
            except (RuntimeError, IndexError, GraphError) as error:
                raise ShapeError(f"{node.describe()} cannot run: {error}") from error
            values[node.output] = _seen(observe, node.output, value)
            for name in dead:
                del values[name]
        return [values[name] for name in self.graph.outputs]

    def bind(self, inputs: Sequence[Tensor]) -> Mapping[str, int]:
        """The size of every symbol for ``inputs``, which are checked against the graph's."""
        if len(inputs) != len(self.graph.inputs):
            names = ", ".join(entry.name for entry in self.graph.inputs)
            raise InputError(f"{len(inputs)} inputs are given, the graph takes {len(self.graph.inputs)}: {names}")
        for entry, value in zip(self.graph.inputs, inputs, strict=True):
            if value.dtype != getattr(torch, entry.type.dtype):
                wanted = f"{show_shape(entry.shape)} of {entry.type.dtype}"
                raise InputError(f"input {entry.name!r} has dtype {value.dtype}, expected {wanted}")
        try:
            return bind(
                self.graph, {entry.name: tuple(x.shape) for entry, x in zip(self.graph.inputs, inputs, strict=True)}
            )
        except ShapeError as error:
            raise InputError(str(error)) from error


def run(graph: Graph, inputs: Sequence[Tensor], observe: Observe | None = None) -> list[Tensor]:
    """``Executor(graph).run(inputs, observe)``, for a graph that is run once."""
    return Executor(graph).run(inputs, observe)


def _constant(value: np.ndarray) -> Tensor:
    """A tensor whose channels lie side by side, if it has some: so do those of all that a convolution by it makes.

    On CPUs this is about twice as fast, above all where channels are convolved one by one.
    """
    tensor = torch.from_numpy(value)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _seen(observe: Observe | None, name: str, value: Tensor) -> Tensor:
    if observe is None:
        return value
    replaced = observe(name, value)
    return value if replaced is None else replaced


def in_memory_order(values: Tensor) -> Tensor:
    """A view (N, H, W, C) of a map (N, C, H, W) whose channels lie side by side; other tensors as they are."""
    by_channel = values.dim() == 4 and not values.is_contiguous()
    return values.movedim(1, -1) if by_channel and values.movedim(1, -1).is_contiguous() else values


def last_uses(graph: Graph) -> list[list[str]]:
    """For each node, the activations that nothing reads after it, so that their memory is free for others."""
    kept = set(graph.outputs) | set(graph.constants)
    dead: list[list[str]] = []
    for node in reversed(graph.nodes):
        names = [name for name in dict.fromkeys((*node.inputs, node.output)) if name not in kept]
        kept.update(names)
        dead.append(names)
    return dead[::-1]
