"""Planning: a graph and the shapes of its inputs become steps with every shape, number and buffer resolved.

What depends on weights is prepared once (``Planner``); what depends on the input's size is planned for each size and
kept for the sizes used last.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kvant.errors import InputError, ShapeError
from kvant.graph import Graph, TensorType, bind, infer_shapes
from kvant.runtime.fuse import fuse
from kvant.runtime.guarded import Guarded
from kvant.runtime.inplace import Home, find_homes
from kvant.runtime.inputs import takes_pixels
from kvant.runtime.lower import Context, lower, prepare
from kvant.runtime.memory import Arena
from kvant.runtime.steps import Conv, ConvPair, Quantize, Step

Shape = tuple[int, ...]
DEFAULT_MEMORY_LIMIT = 16 * 2**30
CACHED_PLANS = 16
_MAX_AXIS = 2**31 - 1


@dataclass(frozen=True)
class Placement:
    """A tensor's view of its storage: an offset in the arena, or a constant's name.

    ``shape`` is that in memory; axis ``axes[i]`` of it is axis i of the graph's tensor, None: in the graph's order.
    Where the tensor lies within another one, its pixels (all axes but the last) are ``pitch`` elements apart and
    begin at element ``column`` of the storage.
    """

    shape: Shape
    axes: tuple[int, ...] | None
    dtype: str
    offset: int = 0
    constant: str | None = None
    column: int = 0
    pitch: int | None = None

    @property
    def storage_bytes(self) -> int:
        """Bytes of the storage, from ``offset`` on."""
        elements = math.prod(self.shape) if self.pitch is None else math.prod(self.shape[:-1]) * self.pitch
        return elements * _ITEM_SIZES[self.dtype]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to run for one set of input shapes.

    Attributes:
        steps: in execution order.
        placements: where every tensor lives that is written.
        arena_bytes: memory that all activations share.
        given: inputs that are only quantized: they are read where the caller has them.
        pixels: what the only input becomes, if that is the integers that uint8 gives it by and convolutions read it:
            where the caller has it as it lies in memory, it is read there, and the first step is left out.
    """

    steps: tuple[Step, ...]
    placements: Mapping[str, Placement]
    arena_bytes: int
    given: tuple[str, ...] = ()
    pixels: str | None = None


class Planner(Guarded):
    """Makes plans of one graph and keeps the latest ones. Safe to use from several threads.

    Args:
        graph: validated, quantized.
        memory_limit: refuse to plan activations beyond this many bytes.

    Raises:
        GraphError, AccumulatorOverflowError: at once, where a node cannot run on any input.
    """

    def __init__(self, graph: Graph, memory_limit: int = DEFAULT_MEMORY_LIMIT) -> None:
        super().__init__()
        self.graph = graph
        self.memory_limit = memory_limit
        self.weights = prepare(graph)
        self._plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()

    def plan(self, shapes: Mapping[str, Shape], keep_all: bool = False) -> Plan:
        """The plan for inputs of these shapes; with ``keep_all`` every activation is written, and no memory used again.

        Raises:
            InputError: the shapes do not fit the graph, or need more memory than the limit.
        """
        key = (keep_all, *(shapes[entry.name] for entry in self.graph.inputs))
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        plan = self._make(shapes, keep_all)
        with self._lock:
            self._plans[key] = plan
            while len(self._plans) > CACHED_PLANS:
                self._plans.popitem(last=False)
        return plan

    def _make(self, shapes: Mapping[str, Shape], keep_all: bool) -> Plan:
        context = self._resolve(shapes)
        for node in self.graph.nodes:
            lower(context, node)
        if not keep_all:
            context.steps = fuse(context)
        storage = _storage(context)
        placements, arena_bytes = _place(context, storage, keep_all)
        self._check_memory(arena_bytes)
        given, pixels = ((), None) if keep_all else (_given(context, storage), _pixels(context, storage))
        return Plan(tuple(context.steps), placements, arena_bytes, given, pixels)

    def _resolve(self, shapes: Mapping[str, Shape]) -> Context:
        try:
            bindings = bind(self.graph, shapes)
            resolved = infer_shapes(self.graph, shapes)
        except ShapeError as error:
            raise InputError(str(error)) from error
        for name, shape in resolved.items():
            self._check_memory(_bytes(shape, self.graph.types[name]))
            if max(shape, default=1) > _MAX_AXIS:
                raise InputError(f"tensor {name!r} would have the shape {shape}, which is beyond any use")
        return Context(self.graph, resolved, bindings, self.weights)

    def _check_memory(self, needed: int) -> None:
        if needed > self.memory_limit:
            raise InputError(
                f"an input of this size needs {needed:,} bytes for its activations; the limit is "
                f"{self.memory_limit:,} bytes. Use a smaller batch or image, or a larger memory_limit."
            )


_ITEM_SIZES = {name: np.dtype(name).itemsize for name in ("float32", "uint8", "int8", "int16", "int32", "int64")}


def _bytes(shape: Shape, type: TensorType) -> int:
    return math.prod(shape) * _ITEM_SIZES[type.dtype]


def _place(context: Context, storage: dict[str, str], keep_all: bool) -> tuple[dict[str, Placement], int]:
    """Give every tensor that a step or a caller sees its storage."""
    homes = {} if keep_all else find_homes(context)
    storage = storage | {name: home.storage for name, home in homes.items()}
    last_use = _last_uses(context, storage)
    arena = Arena()
    offsets: dict[str, int] = {}
    for entry in context.graph.inputs:
        offsets[entry.name] = arena.allocate(_size(context, entry.name, homes))
    for index, step in enumerate(context.steps):
        own = storage[step.output]
        if own not in offsets:
            offsets[own] = arena.allocate(_size(context, own, homes))
        for name in () if keep_all else {storage[name] for name in (*step.inputs, step.output)}:
            if name in offsets and last_use.get(name, index) == index:
                arena.free(offsets[name], _size(context, name, homes))
    placed = {
        name: _placement(context, name, of, offsets.get(of), homes.get(name))
        for name, of in storage.items()
        if of in offsets or of in context.graph.constants
    }
    return placed, arena.size


def _given(context: Context, storage: Mapping[str, str]) -> tuple[str, ...]:
    """Inputs of which nothing is seen but by steps that quantize them."""
    seen = {storage[name] for name in context.graph.outputs}
    for step in context.steps:
        direct = step.work.given if isinstance(step.work, Quantize) else ""
        seen |= {storage[name] for name in step.inputs if name != direct}
    return tuple(entry.name for entry in context.graph.inputs if entry.name not in seen)


def _pixels(context: Context, storage: Mapping[str, str]) -> str | None:
    """See ``Plan.pixels``."""
    inputs, first = context.graph.inputs, next(iter(context.steps), None)
    if first is None or not isinstance(first.work, Quantize) or len(inputs) != 1:
        return None
    own, name = inputs[0].name, first.output
    if not takes_pixels(context.graph, own):
        return None
    shown = [entry for entry, of in storage.items() if of == name]
    readers = [step for step in context.steps[1:] if {own, name} & set(step.inputs)]
    reads_in_place = all(isinstance(step.work, Conv | ConvPair) and step.inputs[0] == name for step in readers)
    return name if shown == [name] and reads_in_place else None


def _size(context: Context, name: str, homes: Mapping[str, Home]) -> int:
    if name in homes:
        shape = (*context.laid_out(name)[:-1], homes[name].pitch)
        return _bytes(shape, context.type(name))
    return _bytes(context.shapes[name], context.type(name))


def _storage(context: Context) -> dict[str, str]:
    """For every tensor the one whose memory it uses: itself, or the one that it shows in another shape."""
    storage = {name: name for name in context.temporary}
    for name in context.graph.activations():
        source = context.aliases.get(name, name)
        storage[name] = storage.get(source, source)
    for name in (*context.graph.outputs, *(name for step in context.steps for name in step.inputs)):
        storage.setdefault(name, name)
    return storage


def _last_uses(context: Context, storage: Mapping[str, str]) -> dict[str, int]:
    """The last step that reads each storage; graph outputs are read after all steps."""
    found = {storage[name]: index for index, step in enumerate(context.steps) for name in step.inputs}
    return found | {storage[name]: len(context.steps) for name in context.graph.outputs}


def _placement(context: Context, name: str, storage: str, offset: int | None, home: Home | None) -> Placement:
    shape, dtype = context.laid_out(name), context.type(name).dtype
    axes = _inverse(context.order(name)) if name in context.orders else None
    if offset is None:
        return Placement(shape, axes, dtype, constant=storage)
    if home is not None:
        return Placement(shape, axes, dtype, offset, column=home.column, pitch=home.pitch)
    return Placement(shape, axes, dtype, offset)


@lru_cache(maxsize=256)
def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))
