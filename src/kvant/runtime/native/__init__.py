"""The native back end: steps run in the C library, without the interpreter's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from kvant.errors import BackendError, InputError
from kvant.runtime import steps
from kvant.runtime.native import bind, library
from kvant.runtime.native.library import isa, num_threads, set_num_threads
from kvant.runtime.native.packed import Packed

__all__ = ["NativeBackend", "isa", "num_threads", "set_num_threads"]

Array = npt.NDArray[Any]
_BAD_INDEX = 5


class NativeBackend:
    """Runs steps in the C library. Weights are laid out for the machine on their first use.

    Raises:
        BackendError: the library is missing or cannot be loaded.
    """

    name = "native"

    def __init__(self) -> None:
        self._library = library.load_library()
        self._packed: dict[steps.Weights, Packed] = {}
        self._lock = threading.Lock()

    def bind(self, work: steps.Work, inputs: Sequence[Array], output: Array) -> Callable[[], None]:
        """A function that computes ``output`` from ``inputs``."""
        if isinstance(work, steps.Conv | steps.Linear):
            name, args, keep = bind.PACKED[type(work)](work, inputs, output, self._pack(work))
        else:
            name, args, keep = bind.PLAIN[type(work)](work, inputs, output)
        function = getattr(self._library, f"kvant_{name}")

        # The arguments hold addresses only: what they point to lives as long as this function, which refers to it.
        def call(alive: object = (work, inputs, output, keep)) -> None:
            status = function(*args)
            if status == _BAD_INDEX:
                raise _index_error(work, inputs[1], bind.bad_position(keep))
            if status != 0:
                raise BackendError(f"the native library refused {name}: {library.STATUS.get(status, status)}")

        return call

    def _pack(self, work: steps.Conv | steps.Linear) -> Packed:
        with self._lock:
            if work.weights not in self._packed:
                self._packed[work.weights] = Packed(work.weights, isinstance(work, steps.Linear))
            return self._packed[work.weights]


def _index_error(work: steps.Work, indices: Array, position: int) -> InputError:
    size = work.size if isinstance(work, steps.Gather) else 0
    return InputError(f"index {indices.reshape(-1)[position]} is out of range for an axis of {size}")
