"""Single layers: billions of multiply-accumulates a second of each method, beside the processor's peak.

The peak is a loop of vpdpbusd alone (peak.cpp), which takes turns with the direct method, so that both run at the same
frequency; it needs g++ and AVX-512 VNNI and is left out elsewhere. Winograd and the transform count the products of the
direct method, so they may pass it; "late" is with weights that are transformed in each run.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments, conditions, print_table, write_json

import kvant
from kvant.runtime import native, steps
from kvant.runtime.arithmetic import Target
from kvant.runtime.native import NativeBackend, methods

LEAST_SECONDS = 2e-3  # of a call that is timed
LINE_BYTES = 64

# Channels in, out, kernel, stride, size, groups, type of the input.
Layer = tuple[int, int, int, int, int, int, str]
LAYERS: tuple[Layer, ...] = (
    (128, 128, 3, 1, 46, 1, "uint8"), (256, 256, 3, 1, 46, 1, "uint8"), (512, 512, 3, 1, 46, 1, "uint8"),
    (64, 64, 3, 1, 184, 1, "uint8"), (128, 128, 7, 1, 46, 1, "uint8"), (185, 128, 7, 1, 46, 1, "uint8"),
    (128, 128, 1, 1, 46, 1, "uint8"), (512, 512, 1, 1, 46, 1, "uint8"), (3, 64, 3, 1, 368, 1, "uint8"),
    (384, 384, 3, 1, 46, 384, "uint8"), (128, 128, 3, 1, 46, 1, "int16"), (384, 384, 1, 1, 46, 1, "int16"),
    (384, 384, 3, 1, 46, 384, "int16"),
)  # fmt: skip


def load_peak() -> Callable[[int], float] | None:
    """Billions of 8-bit products a second of so many threads, or None where that cannot be measured."""
    if native.isa() != "avx512vnni":
        return None
    source, flags = Path(__file__).with_name("peak.cpp"), ["-O3", "-std=c++17", "-mavx512f", "-mavx512vnni"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peak.so"
        try:
            subprocess.run(["g++", *flags, "-shared", "-fPIC", str(source), "-o", str(file)], check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        function = ctypes.CDLL(str(file)).peak
    function.argtypes, function.restype = [ctypes.c_int], ctypes.c_double
    measured: Callable[[int], float] = function
    return measured


def work_of(layer: Layer) -> steps.Conv:
    """A layer with random weights."""
    inputs, outputs, kernel, stride, size, groups, dtype = layer
    rng = np.random.default_rng(0)
    values = rng.integers(-60, 60, (outputs, inputs // groups, kernel, kernel)).astype(np.int8)
    weights = steps.Weights(
        values, np.zeros(outputs, np.int64), np.full(outputs, 1e-4, np.float32), 2**30, 2**10, groups, dtype, 0
    )
    pair, out, pads = (size, size), (-(-size // stride),) * 2, (kernel // 2,) * 2
    return steps.Conv(
        weights=weights, transposed=False, batch=1, channels=inputs, size=pair, output_channels=outputs,
        output_size=out, kernel=(kernel, kernel), strides=(stride, stride), pads=pads, dilations=(1, 1),
        target=Target(dtype, 0, 0, 255),
    )  # fmt: skip


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """An array that begins with a cache line, as those of a plan do."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % LINE_BYTES
    return memory[first : first + size].view(dtype).reshape(shape)


def nothing() -> None:
    """Between the rounds of most methods."""


def speed(layer: Layer, method: str, rounds: int, between: Callable[[], None] = nothing) -> float | None:
    """Billions of multiply-accumulates a second, or None if the method is not for the layer."""
    work = work_of(layer)
    backend = NativeBackend()
    backend.prepare([steps.Step(work, ("x",), "y", "layer")], math.inf)
    backend._chosen = {work.weights: methods.Choice("layer", method, 0, 0)}
    if method != methods.DIRECT and backend.choices[0].algorithm != method:
        return None
    x = aligned((1, *work.size, work.channels), work.weights.dtype)
    x[:] = np.random.default_rng(1).integers(0, 255, x.shape)
    y = aligned((1, *work.output_size, work.output_channels), work.target.dtype)
    # So often in one call that the call itself, from Python, does not count: a single run takes twice as long with it.
    count = 1
    for _ in range(2):
        once = min(seconds(backend.bind([(work, [x], y)] * count), 5)) / count
        count = math.ceil(LEAST_SECONDS / once)
    taken = statistics.median(seconds(backend.bind([(work, [x], y)] * count), rounds, between)) / count
    return math.prod(work.output_size) * work.weights.values.size / taken / 1e9


def seconds(run: Callable[[], None], rounds: int, between: Callable[[], None] = nothing) -> list[float]:
    """The times of some calls, each after one that does not count: threads may sleep, caches hold something else."""
    times = []
    for _ in range(rounds):
        between()
        run()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def title(layer: Layer) -> str:
    """Channels, kernel, size and type."""
    inputs, outputs, kernel, _, size, groups, dtype = layer
    kind = "depthwise " if groups == inputs else ""
    return f"{kind}{inputs} to {outputs}, {kernel} x {kernel}, {size} x {size}, {dtype}"


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each layer and number of threads."""
    lines = []
    for entry in report["results"]:
        most = entry.get("peak")
        line = [entry["layer"], str(entry["threads"]), f"{most:.0f}" if most else ""]
        for method in METHODS:
            found = entry["gmacs"].get(method)
            share = f" ({found / most:.0%})" if found and most else ""
            line.append(f"{found:.0f}{share}" if found else "")
        lines.append(line)
    return lines


METHODS = {
    methods.DIRECT: "direct, GMAC/s (of peak)",
    methods.WINOGRAD: "Winograd",
    methods.WINOGRAD_LATE: "late",
    methods.TRANSFORM: "transform",
    methods.TRANSFORM_LATE: "late",
}
COLUMNS = ["layer", "threads", "peak", *METHODS.values()]


def measure(layer: Layer, threads: int, rounds: int, peak: Callable[[int], float] | None) -> dict[str, Any]:
    """The layer by each method, and the peak beside the direct one."""
    peaks: list[float] = []

    def between() -> None:
        if peak is not None:
            peaks.append(peak(threads))

    found = {name: speed(layer, name, rounds, between if name == methods.DIRECT else nothing) for name in METHODS}
    gmacs = {name: round(value, 1) for name, value in found.items() if value is not None}
    most = round(statistics.median(peaks), 1) if peaks else None
    return {"layer": title(layer), "threads": threads, "gmacs": gmacs, "peak": most}


def main() -> None:
    options = arguments(__doc__, rounds=50).parse_args()
    results, peak = [], load_peak()
    for threads in range(1, options.threads + 1):
        kvant.set_num_threads(threads)
        for layer in LAYERS:
            results.append(measure(layer, threads, options.rounds, peak))
            print(results[-1], flush=True)
    report = {**conditions(options.threads), "isa": native.isa(), "results": results}
    write_json(options.output / "kernels.json", report)
    print_table(COLUMNS, rows(report))


if __name__ == "__main__":
    main()
