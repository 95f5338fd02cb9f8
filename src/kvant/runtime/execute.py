"""Execution: a plan bound to memory and to a back end's functions, and the frames that are kept for the next call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kvant.graph import Graph
from kvant.runtime.memory import ALIGNMENT
from kvant.runtime.plan import Placement, Plan
from kvant.runtime.steps import Work

Array = npt.NDArray[Any]
# Idle memory that a model keeps for the next call: the last frame always, older ones up to this many bytes.
_IDLE_BYTES = 256 * 2**20


class Backend(Protocol):
    """What runs steps: for each kind of work a function that is bound to its arrays once and then called many times."""

    name: str

    def bind(self, work: Work, inputs: Sequence[Array], output: Array) -> Callable[[], None]:
        """A function that computes ``output`` from ``inputs``, which it may call again when their contents change."""


class Frame:
    """One plan's memory and bound steps. A frame serves one call at a time."""

    def __init__(self, plan: Plan, graph: Graph, backend: Backend) -> None:
        self.plan = plan
        self.bytes = plan.arena_bytes
        arena = np.empty(plan.arena_bytes + ALIGNMENT, np.uint8)
        skip = -arena.ctypes.data % ALIGNMENT
        self.views = {name: _view(placement, arena, skip, graph) for name, placement in plan.placements.items()}
        self._calls = [
            backend.bind(step.work, [self.views[name] for name in step.inputs], self.views[step.output])
            for step in plan.steps
        ]

    def run(self, inputs: Mapping[str, Array]) -> None:
        """Compute every step; results are in ``views`` until the next run."""
        for name, value in inputs.items():
            np.copyto(self.views[name], value)
        for call in self._calls:
            call()


def _view(placement: Placement, arena: npt.NDArray[np.uint8], skip: int, graph: Graph) -> Array:
    if placement.constant is not None:
        # The back ends read elements as they lie in memory; a file's arrays may start at any byte.
        return np.require(graph.constants[placement.constant], requirements=["C", "A"]).reshape(placement.shape)
    return np.ndarray(placement.shape, placement.dtype, buffer=arena.data, offset=skip + placement.offset)


class FramePool:
    """Frames that are idle, so that the next call of the same size finds its memory mapped and its steps bound."""

    def __init__(self, graph: Graph, backend: Backend) -> None:
        self._graph = graph
        self._backend = backend
        self._idle: list[Frame] = []
        self._lock = threading.Lock()

    def take(self, plan: Plan) -> Frame:
        """An idle frame of ``plan``, or a new one."""
        with self._lock:
            for index in reversed(range(len(self._idle))):
                if self._idle[index].plan is plan:
                    return self._idle.pop(index)
        return Frame(plan, self._graph, self._backend)

    def give_back(self, frame: Frame) -> None:
        """Keep ``frame`` for a later call, and let the oldest ones go where together they hold too much."""
        with self._lock:
            self._idle.append(frame)
            while len(self._idle) > 1 and sum(entry.bytes for entry in self._idle) > _IDLE_BYTES:
                self._idle.pop(0)
