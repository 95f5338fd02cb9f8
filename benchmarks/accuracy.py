"""Average precision on COCO val photos of the float pose network and of what each tool makes of it.

Every tool calibrates on the same train photos; one decoder scores them all. Each runs in a process of its own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    COCO,
    SPEC,
    PeakMemory,
    arguments,
    calibration_tensors,
    conditions,
    finish,
    in_new_process,
    job_of,
    print_table,
    random_input,
    require_coco,
    validation_subset,
    write_json,
)
from _engines import ENGINES, TITLES, Infer, Kvant, export_onnx

from kvant.pose import ONE_SCALE, PoseEstimator, evaluate_coco, prepare, read_image
from kvant.pose.demo.report import output_sqnr, shares_text
from kvant.pose.demo.without_torch import median_ms

SQNR_PHOTOS = 8


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Quantize with one tool (or none: float) and score the result."""
    onnx = Path(job["onnx"])
    facts: dict[str, Any] = {}
    if job["engine"] == "float":
        engine = Kvant(onnx, job["threads"])
        infer = engine.float_infer()
        facts["bytes"] = sum(value.numel() * value.element_size() for value in engine.net.state_dict().values())
    else:
        infer, facts = _quantize(job, onnx)
    annotations = Path(job["annotations"])
    estimator = PoseEstimator(infer, network=SPEC, height=job["height"], scales=job["scales"])
    scores = evaluate_coco(estimator, COCO / "val2017", annotations)
    _save_outputs(infer, job, onnx.parent)
    array = random_input()
    return {**facts, "ms": round(median_ms(lambda: infer(array), 9), 1), **_rounded(scores)}


def _quantize(job: dict[str, Any], onnx: Path) -> tuple[Infer, dict[str, Any]]:
    engine = ENGINES[job["engine"]](onnx, job["threads"])
    tensors = calibration_tensors(job["calibration"], job["height"], job["scales"])
    memory, start = PeakMemory(), time.perf_counter()
    infer, facts = engine.quantize(tensors)
    seconds = time.perf_counter() - start
    return infer, {**facts, "quantize_seconds": round(seconds, 1), "quantize_extra_mb": round(memory.grown())}


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(scores[name], 4) for name in ("AP", "AP50", "AP75", "AR")}


def _save_outputs(infer: Infer, job: dict[str, Any], folder: Path) -> None:
    photos = sorted((COCO / "val2017").glob("*.jpg"))[:SQNR_PHOTOS]
    outputs = [infer(prepare(read_image(path), SPEC, job["height"])[0]) for path in photos]
    np.savez(folder / f"{job['engine']}.npz", *outputs)


def _sqnr(folder: Path, engine: str) -> dict[str, float]:
    with np.load(folder / "float.npz") as reference, np.load(folder / f"{engine}.npz") as other:
        return output_sqnr(SPEC, [reference[name] for name in reference], [other[name] for name in other])


def compare(options: Any) -> dict[str, Any]:
    """Measure every engine and return the report."""
    report: dict[str, Any] = {
        "network": SPEC.name,
        "calibration_photos": min(options.calibration, len(list((COCO / "train2017").glob("*.jpg")))),
        **conditions(options.threads),
    }
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations = validation_subset(options.photos, folder)
        export_onnx(folder / "float.onnx")
        for engine in ("float", *options.engines):
            print(f"{TITLES[engine]} ...", flush=True)
            job = {
                "engine": engine,
                "onnx": str(folder / "float.onnx"),
                "annotations": str(annotations),
                "calibration": options.calibration,
                "threads": options.threads,
                "height": options.height,
                "scales": options.scales,
            }
            results[engine] = in_new_process(__file__, job)
            if engine != "float":
                results[engine]["sqnr_db"] = _sqnr(folder, engine)
    return {**report, "scales": options.scales, "val_photos": options.photos, "results": results}


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each engine."""
    reference = report["results"]["float"]
    lines = []
    for name, found in report["results"].items():
        row = [
            TITLES[name],
            f"{found['AP']:.4f}",
            "",
            "",
            f"{found['int8xint8']:.0%}" if "int8xint8" in found else "",
            f"{found['bytes'] / 1e6:.2f} MB" if found["bytes"] else "",
            f"{found['ms']:.0f} ms",
            "",
            "",
        ]
        if name != "float":
            row[2] = f"{found['AP'] - reference['AP']:+.4f}"
            row[3] = "{heat:.1f}, {paf:.1f} dB".format(**found["sqnr_db"])
            row[7:] = [f"{found['quantize_seconds']:.0f} s", f"{found['quantize_extra_mb']} MB"]
        lines.append(row)
    return lines


COLUMNS = [
    "",
    "AP",
    "against float",
    "SQNR of heat maps, PAFs",
    "int8 x int8",
    "size",
    "time a picture",
    "quantized in",
    "more memory",
]


def main() -> None:
    job = job_of(sys.argv)
    if job is not None:
        finish(job, measure(job))
        return
    require_coco()
    parser = arguments(__doc__, calibration=134, photos=83)
    parser.add_argument("--scales", nargs="+", type=float, default=list(ONE_SCALE), help="maps are averaged over these")
    parser.add_argument("--engines", nargs="*", choices=list(ENGINES), default=list(ENGINES), help="tools to compare")
    options = parser.parse_args()
    report = compare(options)
    print_table(COLUMNS, rows(report))
    if "kvant" in report["results"]:
        shares = report["results"]["kvant"]
        print(f"kvant multiplies {shares_text(shares)}")
    name = "accuracy.json" if len(options.scales) == 1 else f"accuracy-{len(options.scales)}-scales.json"
    write_json(options.output / name, report)


if __name__ == "__main__":
    main()
