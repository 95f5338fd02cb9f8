"""Single layers: billions of multiply-accumulates a second of each method, beside the processor's peak.

The peak is a loop of vpdpbusd alone (peak.cpp), measured before and after; it needs g++ and AVX-512 VNNI and is left
out elsewhere. Winograd and the transform count the products of the direct method, so they may pass it; "late" is with
weights that are transformed in each run.
"""

from __future__ import annotations

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

# Channels in, out, kernel, stride, size, groups, type of the input.
Layer = tuple[int, int, int, int, int, int, str]
LAYERS: tuple[Layer, ...] = (
    (128, 128, 3, 1, 46, 1, "uint8"), (256, 256, 3, 1, 46, 1, "uint8"), (512, 512, 3, 1, 46, 1, "uint8"),
    (64, 64, 3, 1, 184, 1, "uint8"), (128, 128, 7, 1, 46, 1, "uint8"), (185, 128, 7, 1, 46, 1, "uint8"),
    (128, 128, 1, 1, 46, 1, "uint8"), (512, 512, 1, 1, 46, 1, "uint8"), (3, 64, 3, 1, 368, 1, "uint8"),
    (384, 384, 3, 1, 46, 384, "uint8"), (128, 128, 3, 1, 46, 1, "int16"), (384, 384, 1, 1, 46, 1, "int16"),
    (384, 384, 3, 1, 46, 384, "int16"),
)  # fmt: skip


def peak(threads: int) -> float | None:
    """Billions of 8-bit products a second, or None where that cannot be measured."""
    if native.isa() != "avx512vnni":
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        source = Path(__file__).with_name("peak.cpp")
        flags = ["-O3", "-std=c++17", "-pthread", "-mavx512f", "-mavx512vnni"]
        try:
            subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return float(subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout)


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


def speed(layer: Layer, method: str, rounds: int) -> float | None:
    """Billions of multiply-accumulates a second, or None if the method is not for the layer."""
    work = work_of(layer)
    backend = NativeBackend()
    backend.prepare([steps.Step(work, ("x",), "y", "layer")], math.inf)
    backend._chosen = {work.weights: methods.Choice("layer", method, 0, 0)}
    if method != methods.DIRECT and backend.choices[0].algorithm != method:
        return None
    x = np.random.default_rng(1).integers(0, 255, (1, *work.size, work.channels)).astype(work.weights.dtype)
    y = np.empty((1, *work.output_size, work.output_channels), work.target.dtype)
    once = min(seconds(backend.bind([(work, [x], y)]), 5))
    # So often in one call that the call itself, from Python, does not count.
    count = math.ceil(LEAST_SECONDS / once)
    taken = statistics.median(seconds(backend.bind([(work, [x], y)] * count), rounds)) / count
    return math.prod(work.output_size) * work.weights.values.size / taken / 1e9


def seconds(run: Callable[[], None], rounds: int) -> list[float]:
    """The times of some calls, after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
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
        most = report["peak"].get(str(entry["threads"]))
        line = [entry["layer"], str(entry["threads"])]
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
COLUMNS = ["layer", "threads", *METHODS.values()]


def main() -> None:
    options = arguments(__doc__, rounds=50).parse_args()
    results, peaks = [], {}
    for threads in range(1, options.threads + 1):
        kvant.set_num_threads(threads)
        before = peak(threads)
        for layer in LAYERS:
            found = {name: speed(layer, name, options.rounds) for name in METHODS}
            gmacs = {name: round(value, 1) for name, value in found.items() if value is not None}
            results.append({"layer": title(layer), "threads": threads, "gmacs": gmacs})
            print(title(layer), threads, gmacs, flush=True)
        after = peak(threads)
        if before is not None and after is not None:
            peaks[str(threads)] = max(before, after)
    report = {**conditions(options.threads), "isa": native.isa(), "peak": peaks, "results": results}
    write_json(options.output / "kernels.json", report)
    print(f"peak: {peaks}")
    print_table(COLUMNS, rows(report))


if __name__ == "__main__":
    main()
