"""A short measured trial in place of the cost model: KVANT_TUNE=measure. It decides how to compute, never the bits."""

from __future__ import annotations

import os
import time
from ctypes import byref, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import BackendError
from kvant.runtime.native import calls, library, methods
from kvant.runtime.native.packed import Packed
from kvant.runtime.steps import Conv

MODEL, MEASURE = "model", "measure"
_RUNS = 3


def wanted() -> str:
    """What KVANT_TUNE asks for, "model" by default.

    Raises:
        BackendError: it asks for something else.
    """
    found = os.environ.get("KVANT_TUNE") or MODEL
    if found not in (MODEL, MEASURE):
        raise BackendError(f"KVANT_TUNE={found!r}: expected {MODEL!r} or {MEASURE!r}")
    return found


class Trial:
    """Measures how long layers take, each shape once. Weights are laid out for the trial and freed after it."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], float] = {}

    def __call__(self, work: Conv, algorithm: str, weight_bytes: int) -> float:
        """Seconds of the fastest of a few runs at the layer's size, on all threads."""
        key = (algorithm, weight_bytes, work.batch, work.channels, work.size, work.output_size, work.pads, work.target)
        if key in self._found:
            return self._found[key]
        seconds = _measure(work, algorithm)
        if seconds < float("inf"):  # else these weights rule the algorithm out, others of the shape may not
            self._found[key] = seconds
        return seconds


def _measure(work: Conv, algorithm: str) -> float:
    packed = Packed(work, algorithm)
    if algorithm in (methods.WINOGRAD, methods.TRANSFORM) and packed.algorithm != algorithm:
        return float("inf")  # not exact for these weights
    x: npt.NDArray[Any] = np.ones((work.batch, *work.size, work.channels), work.weights.dtype)
    y: npt.NDArray[Any] = np.empty((work.batch, *work.output_size, work.output_channels), work.target.dtype)
    bound = [calls.conv(work, [x], y, packed)]
    slots, failed = calls.encode(bound), c_int64(0)
    address = c_void_p(slots.buffer_info()[0])
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        status = library.load_library().kvant_run(address, c_int64(1), byref(failed))
        times.append(time.perf_counter() - start)
        if status != 0:
            raise BackendError(f"the native library refused a trial: {library.STATUS.get(status, status)}")
    return min(times)
