"""Execution: a plan bound to memory and to a back end's functions, and the frames that are kept for the next call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kvant.graph import Graph
from kvant.runtime.guarded import Guarded
from kvant.runtime.memory import block
from kvant.runtime.native.methods import Choice
from kvant.runtime.plan import CACHED_PLANS, Placement, Plan
from kvant.runtime.steps import Step, Work

Array = npt.NDArray[Any]
# Idle memory that a model keeps for the next call: the last frame always, older ones up to this many bytes.
_IDLE_BYTES = 256 * 2**20
_UINT8 = np.dtype(np.uint8)


class Backend(Protocol):
    """What runs steps: they are bound to their arrays once and then run many times."""

    name: str

    @property
    def choices(self) -> Sequence[Choice]:
        """The algorithm of each convolution, where there is a choice."""

    def prepare(self, plan: Sequence[Step], memory_budget: float) -> None:
        """Choose how to compute, from the steps at the example size; weights may take so many bytes."""

    def bind(
        self, work: Sequence[tuple[Work, Sequence[Array], Array]], given: Sequence[Array] = ()
    ) -> Callable[..., None]:
        """A function that does all of the work in order, each piece with its inputs and output.

        It takes an array of the same shape and type for each of ``given``, which it reads in its place.
        """


class Frame:
    """One plan's memory and bound steps. A frame serves one call at a time."""

    def __init__(self, plan: Plan, graph: Graph, backend: Backend) -> None:
        self.plan = plan
        self.bytes = plan.arena_bytes
        arena = block(plan.arena_bytes)
        stored = {name: _view(placement, arena, graph) for name, placement in plan.placements.items()}
        self.views = {
            name: stored[name] if placement.axes is None else stored[name].transpose(placement.axes)
            for name, placement in plan.placements.items()
        }
        self.outputs = [self.views[name] for name in graph.outputs]
        inputs = [self.views[entry.name] for entry in graph.inputs]
        self._read_in_place = [(view.dtype, view.shape) for view in inputs] if len(plan.given) == len(inputs) else None
        work = [(step.work, [stored[name] for name in step.inputs], stored[step.output]) for step in plan.steps]
        self.compute = backend.bind(work, [stored[name] for name in plan.given])
        self._pixels: _Pixels | None = None
        if plan.pixels is not None:
            place = stored[plan.pixels]
            axes = plan.placements[plan.pixels].axes or range(place.ndim)
            order = tuple(np.argsort(axes).tolist())
            self._pixels = _Pixels(inputs[0].shape, order, lambda: backend.bind(work[1:], [place]))

    def reads(self, values: Sequence[Any]) -> bool:
        """Whether ``compute_in_place`` can read these inputs, in the graph's order."""
        if self._read_in_place is None or len(values) != len(self._read_in_place):
            return False
        if self._pixels is not None and self._pixels.reads(values[0]):
            return True
        for value, (dtype, shape) in zip(values, self._read_in_place, strict=True):
            if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != shape:
                return False
        return True

    def compute_in_place(self, values: Sequence[Array]) -> None:
        """Compute every step of inputs that are read where they are; see ``run``."""
        if self._pixels is not None and values[0].dtype is _UINT8:
            self._pixels.compute(values[0])
        else:
            self.compute(*values)

    def run(self, inputs: Mapping[str, Array]) -> None:
        """Compute every step; results are in ``views`` and ``outputs`` until the next run.

        Raises:
            InputError: an input holds NaN or infinity.
        """
        for name, value in inputs.items():
            if name not in self.plan.given:
                np.copyto(self.views[name], value)
        self.compute(*(inputs[name] for name in self.plan.given))


class _Pixels:
    """The way from an input that is given as uint8, as the first convolution wants it to lie in memory.

    Args:
        shape: of the input.
        order: its axes as they lie in memory, the outermost first.
        bind: makes what computes of an array of these axes.
    """

    def __init__(self, shape: tuple[int, ...], order: tuple[int, ...], bind: Callable[[], Callable[..., None]]) -> None:
        self._shape, self._order, self._bind = shape, order, bind

    def reads(self, value: Any) -> bool:
        """Whether ``compute`` can read a value."""
        if type(value) is not np.ndarray or value.dtype is not _UINT8 or value.shape != self._shape:
            return False
        return bool(value.transpose(self._order).flags.c_contiguous)

    def compute(self, value: Array) -> None:
        """Compute every step."""
        self._bound(value.transpose(self._order))

    @cached_property
    def _bound(self) -> Callable[..., None]:
        return self._bind()


def _view(placement: Placement, arena: npt.NDArray[np.uint8], graph: Graph) -> Array:
    if placement.constant is not None:
        # The back ends read elements as they lie in memory; a file's arrays may start at any byte.
        return np.require(graph.constants[placement.constant], requirements=["C", "A"]).reshape(placement.shape)
    return view_of(placement, arena[placement.offset :])


def view_of(placement: Placement, storage: npt.NDArray[np.uint8]) -> Array:
    """A tensor in its storage."""
    if placement.pitch is None:
        return np.ndarray(placement.shape, placement.dtype, buffer=storage.data)
    item = np.dtype(placement.dtype).itemsize
    strides = [item, placement.pitch * item]
    for size in reversed(placement.shape[1:-1]):
        strides.append(strides[-1] * size)
    strides = strides[: len(placement.shape)]
    return np.ndarray(placement.shape, placement.dtype, storage.data, placement.column * item, strides[::-1])


class FramePool(Guarded):
    """Frames that are idle, so that the next call of the same size finds its memory mapped and its steps bound."""

    def __init__(self, graph: Graph, backend: Backend) -> None:
        super().__init__()
        self._graph = graph
        self._backend = backend
        self._idle: list[Frame] = []

    def take(self, plan: Plan) -> Frame:
        """An idle frame of ``plan``, or a new one."""
        with self._lock:
            for index in reversed(range(len(self._idle))):
                if self._idle[index].plan is plan:
                    return self._idle.pop(index)
        return Frame(plan, self._graph, self._backend)

    def again(self, values: Sequence[Any]) -> list[Array] | None:
        """What the last call's frame makes of inputs that it can read where they are; None if it cannot.

        The shortest way: between two calls the weights push Python's own code and data out of the caches.
        """
        with self._lock:
            frame = self._idle.pop() if self._idle and self._idle[-1].reads(values) else None
        if frame is None:
            return None
        frame.compute_in_place(values)
        found = [view.copy() for view in frame.outputs]
        self.give_back(frame)
        return found

    def give_back(self, frame: Frame) -> None:
        """Keep ``frame`` for a later call, and let the oldest ones go where together they hold too much."""
        with self._lock:
            self._idle.append(frame)
            while len(self._idle) > 1 and self._is_too_much():
                self._idle.pop(0)

    def _is_too_much(self) -> bool:
        # A plan that the planner has forgotten is made anew when its size comes again: no call ever takes its frames.
        plans = {id(entry.plan) for entry in self._idle}
        return len(plans) > CACHED_PLANS or sum(entry.bytes for entry in self._idle) > _IDLE_BYTES
