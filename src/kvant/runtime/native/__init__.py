"""The native back end: steps run in the C library, without the interpreter's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_int64, c_void_p
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import BackendError, InputError
from kvant.runtime import steps
from kvant.runtime.inputs import not_finite
from kvant.runtime.native import calls, library, methods
from kvant.runtime.native.library import isa, num_threads, set_num_threads, stay_on_thread
from kvant.runtime.native.methods import DIRECT, SPEEDS, XNOR, Choice, Costs, choose, of_signs
from kvant.runtime.native.packed import Packed, packed_bytes, packed_room
from kvant.runtime.native.trial import MEASURE, Trial, pace, wanted

__all__ = ["Choice", "NativeBackend", "isa", "num_threads", "set_num_threads", "stay_on_thread"]

Array = npt.NDArray[Any]
_BAD_INDEX, _NOT_FINITE = 5, 6


class NativeBackend:
    """Runs steps in the C library. Weights are laid out for the machine on their first use.

    Raises:
        BackendError: the library is missing or cannot be loaded.
    """

    name = "native"

    def __init__(self) -> None:
        self._library = library.load_library()
        self._layers: dict[steps.Weights, steps.Conv] = {}
        self._chosen: dict[steps.Weights, Choice] = {}
        self._packed: dict[steps.Weights, Packed] = {}
        self._lock = threading.Lock()

    @property
    def choices(self) -> Sequence[Choice]:
        """How each layer is computed, in execution order; lays out all weights to know."""
        self._pack(list(self._layers.values()))
        made = [(self._chosen[weights], self._packed[weights]) for weights in self._layers]
        return [replace(choice, algorithm=packed.algorithm, bytes=packed.bytes) for choice, packed in made]

    def prepare(self, plan: Sequence[steps.Step], memory_budget: float) -> None:
        """Choose an algorithm for every convolution, from the steps at the example size."""
        layers = [layer for step in plan for layer in steps.layers_of(step)]
        self._layers = {work.weights: work for _, work in layers}
        seconds = Trial() if wanted() == MEASURE else _estimate
        self._chosen = choose(layers, memory_budget, Costs(packed_bytes, packed_room, seconds))

    def bind(
        self, work: Sequence[tuple[steps.Work, Sequence[Array], Array]], given: Sequence[Array] = ()
    ) -> Callable[..., None]:
        """A function that does all of the work in order, in one call of the library; see ``Backend``."""
        self._pack([layer for piece, _, _ in work for layer in steps.convolutions(piece)])
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
            return calls.conv(work, inputs, output, self._packed[work.weights])
        if isinstance(work, steps.ConvPair):
            packed = [self._packed[layer.weights] for layer in steps.convolutions(work)]
            return calls.conv_pair(work, inputs, output, *packed)
        return calls.CALLS[type(work)](work, inputs, output)

    def _pack(self, layers: Sequence[steps.Conv]) -> None:
        """Lay out weights that are not yet, several at once: the library works without the interpreter's lock."""
        with self._lock:
            missing = list({work.weights: work for work in layers if work.weights not in self._packed}.values())
            if missing:
                with ThreadPoolExecutor(num_threads()) as pool:
                    packed = pool.map(self._pack_one, missing)
                    self._packed |= dict(zip((work.weights for work in missing), packed, strict=True))

    def _pack_one(self, work: steps.Conv) -> Packed:
        chosen = self._chosen.get(work.weights)
        plain = XNOR if of_signs(work) else DIRECT
        return Packed(work, plain if chosen is None else chosen.algorithm)


def _plain(array: Array) -> Array:
    """The array, or a copy whose elements lie one after the other where the processor wants them."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=["C", "A"])


def _estimate(work: steps.Conv, algorithm: str, weight_bytes: int) -> float:
    speed = replace(SPEEDS[isa()], pace=pace(isa(), num_threads()))
    return methods.seconds(work, algorithm, weight_bytes, speed)


def _error(status: int, call: tuple[steps.Work, Sequence[Array], Array], bound: calls.Call) -> Exception:
    work, inputs, _ = call
    name, arguments = bound
    bad = arguments[-1]
    if status == _NOT_FINITE and isinstance(work, steps.Quantize):
        return not_finite(work.given, inputs[0].shape)
    if status == _BAD_INDEX and isinstance(work, steps.Gather) and isinstance(bad, c_int64):
        return InputError(f"index {inputs[1].reshape(-1)[bad.value]} is out of range for an axis of {work.size}")
    return BackendError(f"the native library refused {name}: {library.STATUS.get(status, status)}")
