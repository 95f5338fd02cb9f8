"""Time of a pass through whole networks: kvant, OpenVINO, ONNX Runtime and torch, taking turns in one process.

Every network is quantized once by each tool, with all activations and weights in 8 bits, on a few random inputs: this
measures speed, not accuracy. Then, for each number of threads, all runtimes run in turn, round after round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

from _common import REPOSITORY, arguments, conditions, finish, in_new_process, job_of, print_table, write_json
from _networks import CASES, Case, build, export_onnx, inputs
from _runtimes import (
    LOADERS,
    TITLES,
    Infer,
    load_torch,
    prepare_accurate,
    prepare_kvant,
    prepare_onnxruntime,
    prepare_openvino,
    quiet_pools,
)

from kvant.pose.layout import Float32Array

FILES = REPOSITORY / "build" / "benchmarks" / "networks"
# A pass that takes long is repeated less often.
MOST_SECONDS = 1.0
_CALIBRATION = 4
# The network that needs 16 bits in places: its accurate file is timed too.
HARD = "openpose-mobilenet-thin"


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Make the files of one network, each only if it is missing."""
    folder, case = FILES / job["network"], CASES[job["case"]]
    folder.mkdir(parents=True, exist_ok=True)
    net = build(job["network"])
    small = Case(case.network, (case.sizes[0] if case.sizes[0][0] < 368 else (368, 368),))
    samples = [array for _ in range(_CALIBRATION) for array in inputs(small, 1)]
    onnx = folder / "float.onnx"
    if not onnx.exists():
        export_onnx(net, onnx, flexible=job["network"].startswith("openpose"))
    if not (folder / "model.kvant").exists():
        prepare_kvant(net, samples, folder)
    if job["network"] == HARD and not (folder / "accurate.kvant").exists():
        prepare_accurate(net, folder)
    if not (folder / "openvino.xml").exists():
        prepare_openvino(onnx, samples, folder)
    if not (folder / "onnxruntime.onnx").exists():
        prepare_onnxruntime(onnx, samples, folder)
    return {}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a pass for every runtime: the median over rounds in which they take turns."""
    quiet_pools()
    case, folder, threads = CASES[job["case"]], FILES / job["network"], job["threads"]
    arrays = inputs(case, job["batch"])
    accurate = (folder / "accurate.kvant").exists()
    wanted = [name for name in job["runtimes"] if name in LOADERS and (accurate or name != "accurate")]
    runs: dict[str, Infer] = {name: LOADERS[name](folder, threads) for name in wanted}
    if "torch" in job["runtimes"] and len(case.sizes) == 1:  # four sizes of it take minutes
        runs["torch"] = load_torch(build(job["network"]), threads)
    for infer in runs.values():
        _pass(infer, arrays)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(job["rounds"]):
        for name, infer in runs.items():
            times[name] += turn(infer, arrays)
    return {name: round(1000 * statistics.median(found), 3) for name, found in times.items()}


def turn(infer: Infer, arrays: list[Float32Array]) -> list[float]:
    """Times of a few passes; the first, in which caches and threads warm up, does not count."""
    found = [_pass(infer, arrays)]
    while len(found) < 4 and sum(found) < MOST_SECONDS:
        found.append(_pass(infer, arrays))
    return found[1:] or found


def _pass(infer: Infer, arrays: list[Float32Array]) -> float:
    start = time.perf_counter()
    for array in arrays:
        infer(array)
    return time.perf_counter() - start


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All cases that were asked for."""
    results = []
    for index, case in enumerate(CASES):
        if options.only and not any(name in case.title for name in options.only.split(",")):
            continue
        job = {"case": index, "network": case.network}
        print(f"{case.title}: making files", flush=True)
        in_new_process(__file__, {**job, "do": "prepare", "threads": 2})
        for threads in range(1, options.threads + 1):
            for batch in case.batches:
                given = {**job, "batch": batch, "threads": threads, "rounds": options.rounds}
                found = in_new_process(__file__, {**given, "do": "measure", "runtimes": options.runtimes.split(",")})
                results.append({"title": case.title, "batch": batch, "threads": threads, "ms": found})
                print(f"{case.title}, batch {batch}, {threads} threads: {found}", flush=True)
    return {**conditions(options.threads), "rounds": options.rounds, "results": results}


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each network, batch and number of threads; after each peer's time how many times kvant's best it is."""
    lines = []
    for entry in report["results"]:
        line = [entry["title"], str(entry["batch"]), str(entry["threads"])]
        mine = min((entry["ms"][name] for name in ("kvant", "speed") if name in entry["ms"]), default=None)
        for name in SHOWN:
            found = entry["ms"].get(name)
            ratio = f" ({found / mine:.2f} x)" if found and mine and name not in ("kvant", "speed") else ""
            line.append(f"{found:.1f} ms{ratio}" if found else "")
        lines.append(line)
    return lines


SHOWN = ("kvant", "speed", "accurate", "openvino", "onnxruntime", "torch")
COLUMNS = ["network", "batch", "threads", *(TITLES[name] for name in SHOWN)]


def main() -> None:
    job = job_of(sys.argv)
    if job is not None:
        finish(job, prepare(job) if job["do"] == "prepare" else measure(job))
        return
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--only", default="", help="parts of the titles of the networks to measure, with commas")
    parser.add_argument("--isa", choices=["avx2"], help="restrict kvant and OpenVINO to this instruction set")
    parser.add_argument("--runtimes", default="kvant,speed,accurate,openvino,onnxruntime,torch", help="what to compare")
    options = parser.parse_args()
    if options.isa:
        os.environ |= {"KVANT_ISA": options.isa, "ONEDNN_MAX_CPU_ISA": options.isa.upper()}
    report = {**compare(options), "isa": options.isa or "all"}
    write_json(options.output / ("runtime-avx2.json" if options.isa else "runtime.json"), report)
    print_table(COLUMNS, rows(report))


if __name__ == "__main__":
    main()
