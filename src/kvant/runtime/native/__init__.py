"""The native back end: steps run in the C library, without the interpreter's lock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_int64, c_void_p
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import InputError
from kvant.runtime import places, steps
from kvant.runtime.guarded import Guarded
from kvant.runtime.inputs import not_finite
from kvant.runtime.native import calls, library, methods
from kvant.runtime.native.filters import Filter, resample
from kvant.runtime.native.library import is_built, isa, num_threads, set_num_threads, stay_on_thread
from kvant.runtime.native.maps import LineRules, PeopleFinder, PeopleRules, Scale, Skeleton, View
from kvant.runtime.native.methods import DIRECT, SPEEDS, XNOR, Choice, Costs, choose, of_signs
from kvant.runtime.native.packed import Packed, packed_bytes, packed_room
from kvant.runtime.native.processors import available_processors
from kvant.runtime.native.trial import MEASURE, Trial, pace, wanted

__all__ = [
    "Choice",
    "Filter",
    "LineRules",
    "NativeBackend",
    "PeopleFinder",
    "PeopleRules",
    "Scale",
    "Skeleton",
    "View",
    "available_processors",
    "is_built",
    "isa",
    "num_threads",
    "resample",
    "set_num_threads",
    "stay_on_thread",
]

Array = npt.NDArray[Any]
# Without a bound of memory, layers have what is fastest for so many times the example's batch, too.
_LARGE_BATCH = 8
_BAD_INDEX, _NOT_FINITE = 5, 6


class NativeBackend(Guarded):
    """Runs steps in the C library. Weights are laid out for the machine on their first use.

    Raises:
        BackendError: the library is missing or cannot be loaded.
    """

    name = "native"

    def __init__(self) -> None:
        super().__init__()
        self._library = library.load_library()
        self._layers: dict[steps.Weights, steps.Conv] = {}
        self._chosen: dict[steps.Weights, Choice] = {}
        self._of_large_batches: dict[steps.Weights, str] = {}  # where that is another algorithm
        self._packed: dict[tuple[steps.Weights, str], Packed] = {}

    @property
    def choices(self) -> Sequence[Choice]:
        """How each layer is computed at the example size, in execution order; lays out all weights to know.

        Bytes are those of all layouts that a layer has.
        """
        layers = self._layers.values()
        wanted = {work.weights: self._wanted(work) for work in layers}
        self._pack([(work, name) for work in layers for name in wanted[work.weights]])
        made = [[self._packed[weights, name] for name in wanted[weights]] for weights in self._layers]
        return [
            replace(self._chosen[weights], algorithm=packed[0].algorithm, bytes=sum(each.bytes for each in packed))
            for weights, packed in zip(self._layers, made, strict=True)
        ]

    def prepare(self, plan: Sequence[steps.Step], memory_budget: float) -> None:
        """Choose an algorithm for every convolution, from the steps at the example size."""
        layers = [layer for step in plan for layer in steps.layers_of(step)]
        self._layers = {work.weights: work for _, work in layers}
        measures = wanted() == MEASURE
        costs = Costs(packed_bytes, packed_room, Trial() if measures else _estimate)
        self._chosen = choose(layers, memory_budget, costs)
        if memory_budget == math.inf and not measures:
            large = [(node, replace(work, batch=_LARGE_BATCH * work.batch)) for node, work in layers]
            self._of_large_batches = {
                weights: choice.algorithm
                for weights, choice in choose(large, memory_budget, costs).items()
                if choice.algorithm != self._chosen[weights].algorithm
            }

    def bind(
        self, work: Sequence[tuple[steps.Work, Sequence[Array], Array]], given: Sequence[Array] = ()
    ) -> Callable[..., None]:
        """A function that does all of the work in order, in one call of the library; see ``Backend``."""
        self._pack([(layer, self._best(layer)) for piece, _, _ in work for layer in steps.convolutions(piece)])
        bound = [self._call(*piece) for piece in work]
        encoded = calls.encode(bound)
        address, failed = c_void_p(encoded.buffer_info()[0]), c_int64(0)
        run, count = self._library.kvant_run, c_int64(len(bound))
        places = [calls.slots_of(array, bound) for array in given]

        # The library gets addresses only: what they point to lives as long as this function, which refers to it, or
        # during the call.
        def call(*values: Array) -> None:
            plain = [_plain(value) for value in values]
            for slots, value in zip(places, plain, strict=True):
                for slot in slots:
                    encoded[slot] = value.ctypes.data
            status = run(address, count, byref(failed))
            if status != 0:
                raise _error(status, work[failed.value], bound[failed.value])

        return call

    def _call(self, work: steps.Work, inputs: Sequence[Array], output: Array) -> calls.Call:
        if isinstance(work, steps.Conv):
            return calls.conv(work, inputs, output, self._layout(work))
        if isinstance(work, steps.ConvPair):
            packed = [self._layout(layer) for layer in steps.convolutions(work)]
            return calls.conv_pair(work, inputs, output, *packed)
        return calls.CALLS[type(work)](work, inputs, output)

    def _wanted(self, work: steps.Conv) -> list[str]:
        """The algorithms that a layer may be computed by, that of the example's size first."""
        chosen, large = self._chosen.get(work.weights), self._of_large_batches.get(work.weights)
        if chosen is None:
            return [XNOR if of_signs(work) else DIRECT]
        return [chosen.algorithm] if large is None else [chosen.algorithm, large]

    def _best(self, work: steps.Conv) -> str:
        """The algorithm of a layer at its size."""
        wanted = self._wanted(work)
        if len(wanted) == 1:
            return wanted[0]
        return min(wanted, key=lambda name: _estimate(work, name, packed_bytes(work, name) or 0))

    def _layout(self, work: steps.Conv) -> Packed:
        return self._packed[work.weights, self._best(work)]

    def _pack(self, layers: Sequence[tuple[steps.Conv, str]]) -> None:
        """Lay out weights that are not yet, several at once: the library works without the interpreter's lock."""
        with self._lock:
            found = {(work.weights, name): work for work, name in layers}
            missing = [(work, name) for (weights, name), work in found.items() if (weights, name) not in self._packed]
            if missing:
                with ThreadPoolExecutor(num_threads()) as pool:
                    packed = pool.map(Packed, *zip(*missing, strict=True))
                    keys = [(work.weights, name) for work, name in missing]
                    self._packed |= dict(zip(keys, packed, strict=True))


def _plain(array: Array) -> Array:
    """The array, or a copy whose elements lie one after the other where the processor wants them."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=["C", "A"])


def _estimate(work: steps.Conv, algorithm: str, weight_bytes: int) -> float:
    speed = replace(SPEEDS[isa()], pace=pace(isa()))
    return methods.seconds(work, algorithm, weight_bytes, speed)


def _error(status: int, call: tuple[steps.Work, Sequence[Array], Array], bound: calls.Call) -> Exception:
    work, inputs, _ = call
    name, arguments = bound
    bad = arguments[-1]
    if status == _NOT_FINITE and isinstance(work, steps.Quantize):
        return not_finite(work.given, inputs[0].shape)
    if status == _BAD_INDEX and isinstance(work, steps.Gather | places.Pick) and isinstance(bad, c_int64):
        return InputError(f"index {inputs[1].reshape(-1)[bad.value]} is out of range for an axis of {work.size}")
    return library.refusal(name, status)
