"""Measured times: the machine's pace, and a trial of each layer in place of the cost model with KVANT_TUNE=measure.

They decide how to compute, never the bits.
"""

from __future__ import annotations

import functools
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import BackendError
from kvant.runtime.arithmetic import Target
from kvant.runtime.native import calls, library, methods
from kvant.runtime.native.packed import Packed
from kvant.runtime.steps import Conv, Weights

MODEL, MEASURE = "model", "measure"
_RUNS = 3
# Of a layer whose products tell how fast the machine is: pixels, channels, outputs.
_PACE_LAYER, _PACE_RUNS = (1024, 128, 64), 8


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


@functools.cache
def pace(isa: str) -> float:
    """How many times as many products as in ``methods.SPEEDS`` a thread does: the fastest of a few short runs."""
    with ThreadPoolExecutor(1, initializer=library.stay_on_thread) as pool:
        seconds = pool.submit(_pace_seconds).result()
    return math.prod(_PACE_LAYER) / seconds / methods.SPEEDS[isa].direct


def _pace_seconds() -> float:
    pixels, channels, outputs = _PACE_LAYER
    weights = Weights(
        np.ones((outputs, channels, 1, 1), np.int8), np.zeros(outputs, np.int64), np.ones(outputs, np.float32),
        255 * channels, channels, 1, "uint8", 0,
    )  # fmt: skip
    work = Conv(
        batch=1, channels=channels, output_channels=outputs, size=(1, pixels), output_size=(1, pixels), kernel=(1, 1),
        strides=(1, 1), pads=(0, 0), dilations=(1, 1), weights=weights, transposed=False,
        target=Target("uint8", 0, 0, 255),
    )  # fmt: skip
    return min(_times(work, Packed(work, methods.DIRECT), _PACE_RUNS))


def _measure(work: Conv, algorithm: str) -> float:
    packed = Packed(work, algorithm)
    if algorithm != methods.DIRECT and packed.algorithm != algorithm:
        return float("inf")  # not exact for these weights
    return min(_times(work, packed, _RUNS))


def _times(work: Conv, packed: Packed, runs: int) -> list[float]:
    x: npt.NDArray[Any] = np.ones((work.batch, *work.size, work.channels), work.weights.dtype)
    y: npt.NDArray[Any] = np.empty((work.batch, *work.output_size, work.output_channels), work.target.dtype)
    bound = [calls.conv(work, [x], y, packed)]
    slots, failed = calls.encode(bound), c_int64(0)
    address = c_void_p(slots.buffer_info()[0])
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        status = library.load_library().kvant_run(address, c_int64(1), byref(failed))
        times.append(time.perf_counter() - start)
        if status != 0:
            raise library.refusal("a trial", status)
    return times
