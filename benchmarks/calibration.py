"""What a pass over the calibration data costs, against plain float passes over the same data in the same process.

kvant: reading ranges (extremes or histograms), statistics of channels and samples to keep. ONNX Runtime: its
calibrators. NNCF does not offer the pass alone: its row is the whole quantization, with a row of kvant's beside it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import (
    SPEC,
    PeakMemory,
    arguments,
    calibration_tensors,
    conditions,
    finish,
    in_new_process,
    job_of,
    print_table,
    require_coco,
    write_json,
)
from _engines import TITLES, Kvant, OnnxRuntime, OpenVino, Reader, export_onnx

from kvant.pose.layout import Float32Array

MAX_TIME_RATIO = 1.5
MAX_EXTRA_MB = 200
WHOLE = "whole quantization"
MORE = 3  # how many times the pictures are repeated to show that memory does not grow with them
FEW = 10  # pictures for calibrators that keep every activation

Row = dict[str, Any]


class Run(NamedTuple):
    """Seconds, and peaks of resident memory in MB: the smallest and the largest one, if there were several runs."""

    seconds: float
    least: float
    most: float


def measured(call: Callable[[], object]) -> Run:
    """One run."""
    memory, start = PeakMemory(), time.perf_counter()
    call()
    seconds, peak = time.perf_counter() - start, memory.peak()
    return Run(seconds, peak, peak)


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Run]:
    """Median seconds of calls that take turns."""
    found: dict[str, list[Run]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(measured(call))
    return {
        name: Run(
            float(np.median([run.seconds for run in runs])),
            min(run.least for run in runs),
            max(run.most for run in runs),
        )
        for name, runs in found.items()
    }


def row(tool: str, what: str, images: int, run: Run, plain: Run, times: float = 1) -> Row:
    """One line of the report; `times` is how many times more pictures `run` saw than `plain`.

    Memory is above the smallest peak of `plain`: later ones count what other runs have left behind.
    """
    return {
        "tool": tool,
        "what": what,
        "images": images,
        "seconds": round(run.seconds, 2),
        "float_seconds": round(plain.seconds * times, 2),
        "ratio": round(run.seconds / (plain.seconds * times), 3),
        "extra_mb": round(run.most - plain.least),
    }


def all_of(infer: Callable[[Float32Array], object], tensors: list[Float32Array]) -> Callable[[], None]:
    """A call that runs every tensor and keeps no output."""

    def call() -> None:
        for tensor in tensors:
            infer(tensor)

    return call


def measure_kvant(job: Row, onnx: Path, tensors: list[Float32Array]) -> list[Row]:
    import torch

    import kvant
    from kvant.capture import capture, prepare
    from kvant.quantization.progress import Progress
    from kvant.quantization.statistics import collect

    engine = Kvant(onnx, job["threads"])
    graph = prepare(capture(engine.net, (torch.from_numpy(tensors[0]),), {}))
    inputs = [torch.from_numpy(tensor) for tensor in tensors]

    def calibrate(observer: str, times: int = 1) -> Callable[[], object]:
        def call() -> None:
            data = ([tensor] for tensor in islice(cycle(inputs), times * len(inputs)))
            collect(graph, data, observer, kvant.Recipe().kept_samples, Progress(False))

        return call

    infer = engine.float_infer()
    infer(tensors[0])
    found = interleaved(
        {
            "float": all_of(infer, tensors),
            "minmax": calibrate("minmax"),
            "histogram": calibrate("histogram"),
        },
        job["rounds"],
    )
    more = measured(calibrate("histogram", MORE))
    count = len(tensors)

    def whole(effort: Any) -> Run:
        recipe = kvant.Recipe(effort=effort)
        return measured(
            lambda: kvant.quantize(engine.net, inputs[0], calibration=inputs, recipe=recipe, progress=False)
        )

    efforts = {effort: whole(effort) for effort in ("fast", "default")}
    return [
        row("kvant", "extremes", count, found["minmax"], found["float"]),
        row("kvant", "histograms", count, found["histogram"], found["float"]),
        row("kvant", "histograms", MORE * count, more, found["float"], MORE),
        *(row("kvant", f"{WHOLE}, effort {effort}", count, run, found["float"]) for effort, run in efforts.items()),
    ]


def measure_nncf(job: Row, onnx: Path, tensors: list[Float32Array]) -> list[Row]:
    import nncf

    engine = OpenVino(onnx, job["threads"])
    infer = engine.float_infer()
    infer(tensors[0])
    plain = measured(all_of(infer, tensors))
    whole = measured(lambda: nncf.quantize(engine.model, nncf.Dataset(tensors)))
    return [row("nncf", WHOLE, len(tensors), whole, plain)]


def measure_onnxruntime(job: Row, onnx: Path, tensors: list[Float32Array]) -> list[Row]:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    engine = OnnxRuntime(onnx, job["threads"])
    infer, model = engine.float_infer(), engine.preprocessed()
    infer(tensors[0])

    def calibrate(method: CalibrationMethod, data: list[Float32Array]) -> None:
        augmented = str(onnx.parent / "augmented.onnx")
        create_calibrator(model, augmented_model_path=augmented, calibrate_method=method).collect_data(Reader(data))

    plain = measured(all_of(infer, tensors))
    extremes = measured(lambda: calibrate(CalibrationMethod.MinMax, tensors))
    few = cropped(tensors[:FEW])  # its histograms take inputs of one size only
    plain_few = measured(all_of(infer, few))
    histograms = measured(lambda: calibrate(CalibrationMethod.Percentile, few))
    return [
        row("onnxruntime", "extremes", len(tensors), extremes, plain),
        row("onnxruntime", "histograms", len(few), histograms, plain_few),
    ]


def cropped(tensors: list[Float32Array]) -> list[Float32Array]:
    """The tensors cut to the width of the narrowest."""
    width = min(tensor.shape[3] for tensor in tensors)
    return [np.ascontiguousarray(tensor[..., :width]) for tensor in tensors]


def measure_torch_ao(job: Row, onnx: Path, tensors: list[Float32Array]) -> list[Row]:
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    engine = Kvant(onnx, job["threads"])
    infer = engine.float_infer()
    infer(tensors[0])
    plain = measured(all_of(infer, tensors))
    observed = prepare_fx(engine.net, get_default_qconfig_mapping("x86"), (torch.from_numpy(tensors[0]),))
    with torch.inference_mode():
        run = measured(all_of(lambda tensor: observed(torch.from_numpy(tensor)), tensors))
    return [row("torch.ao", "histograms", len(tensors), run, plain)]


MEASURES: dict[str, Callable[[Row, Path, list[Float32Array]], list[Row]]] = {
    "kvant": measure_kvant,
    "nncf": measure_nncf,
    "onnxruntime": measure_onnxruntime,
    "torch.ao": measure_torch_ao,
}
COLUMNS = ["", "pass", "pictures", "time", "float passes", "ratio", "more memory"]


def compare(options: Any) -> dict[str, Any]:
    """Measure every tool in a process of its own and return the report."""
    report: dict[str, Any] = {"network": SPEC.name, "rounds": options.rounds, **conditions(options.threads), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "float.onnx"
        export_onnx(onnx)
        for tool in options.tools:
            print(f"{TITLES[tool]} ...", flush=True)
            job = {"tool": tool, "onnx": str(onnx), "images": options.images, "rounds": options.rounds}
            job |= {"threads": options.threads, "height": options.height}
            report["rows"] += in_new_process(__file__, job)["rows"]
    return report


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each measurement."""
    return [
        [
            TITLES[entry["tool"]],
            entry["what"],
            str(entry["images"]),
            f"{entry['seconds']:.1f} s",
            f"{entry['float_seconds']:.1f} s",
            f"{entry['ratio']:.2f} x",
            f"{entry['extra_mb']} MB",
        ]
        for entry in report["rows"]
    ]


def broken_promises(report: dict[str, Any]) -> list[str]:
    """A sentence for each promise about kvant's calibration that does not hold."""
    return [
        f"{entry['what']} of {entry['images']} pictures: {entry['ratio']} x the time, {entry['extra_mb']} MB more"
        for entry in report["rows"]
        if entry["tool"] == "kvant"
        and not entry["what"].startswith(WHOLE)
        and (entry["ratio"] > MAX_TIME_RATIO or entry["extra_mb"] > MAX_EXTRA_MB)
    ]


def main() -> int:
    job = job_of(sys.argv)
    if job is not None:
        tensors = calibration_tensors(job["images"], job["height"])
        finish(job, {"rows": MEASURES[job["tool"]](job, Path(job["onnx"]), tensors)})
        return 0
    require_coco()
    parser = arguments(__doc__, images=100, rounds=3)
    tools = ["kvant", "nncf", "onnxruntime"]
    parser.add_argument("--tools", nargs="*", choices=list(MEASURES), default=tools, help="torch.ao takes long")
    options = parser.parse_args()
    report = compare(options)
    print_table(COLUMNS, rows(report))
    write_json(options.output / "calibration.json", report)
    broken = broken_promises(report)
    for sentence in broken:
        print(f"over {MAX_TIME_RATIO} x the time or {MAX_EXTRA_MB} MB more: {sentence}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
