"""Top-1 of classifiers with real weights on ImageNet photos: in float, and of what each tool makes of them.

Every tool calibrates on the same photos and is scored on the same other ones, each in a process of its own. The photos
look like training pictures: read differences and agreement with float, not accuracy.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _classifiers import CLASSIFIERS, Classifier
from _common import SHARED, PeakMemory, arguments, conditions, finish, in_new_process, job_of, print_table, write_json
from _engines import Infer, OnnxRuntime, OpenVino

import kvant
from kvant import ActivationScheme, Recipe, WeightScheme
from kvant.errors import CalibrationError
from kvant.pose.layout import Float32Array

IMAGENET = SHARED / "data" / "imagenet"
RECIPES = {
    "kvant": Recipe(),
    "kvant, weights of 4 bits": Recipe(WeightScheme(4, "codebook"), samples=64),
    "kvant, activations of 16 bits": Recipe(activations=ActivationScheme(16)),
    "kvant, powers of two": Recipe(WeightScheme(form="power_of_two"), ActivationScheme(form="power_of_two")),
    "kvant, no data": Recipe(),
}
PEERS = ("NNCF (OpenVINO)", "ONNX Runtime (QDQ)", "torchao (PT2E)")
ENGINES = (*RECIPES, *PEERS)
COLUMNS = ["network", "", "top-1", "against float", "as float", "size", "quantized in", "more memory"]


def photos(calibration: int, scored: int) -> tuple[list[Path], list[Path], list[int]]:
    """Photos to calibrate on, evenly spread over the classes; the first `scored` of the others, and their classes."""
    with (IMAGENET / "labels.csv").open(newline="") as stream:
        labels = {row["file"]: int(row["class_index"]) for row in csv.DictReader(stream)}
    names = sorted(labels)
    chosen = {names[index] for index in np.linspace(0, len(names) - 1, calibration).round().astype(int)}
    others = [name for name in names if name not in chosen][:scored]
    return (
        [IMAGENET / name for name in sorted(chosen)],
        [IMAGENET / name for name in others],
        [labels[n] for n in others],
    )


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Quantize with one tool (or none: float) and answer for all photos."""
    torch.set_num_threads(job["threads"])
    network = CLASSIFIERS[job["network"]]
    calibration, scored, labels = photos(job["calibration"], job["photos"])
    net = network.build()
    facts: dict[str, Any] = {}
    if job["engine"] == "float":
        infer = torch_infer(net)
        facts["bytes"] = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    else:
        tensors = [network.prepare(path) for path in calibration]
        prepared = _tool(job["engine"], network, net, Path(job["folder"]), job["threads"])
        memory, start = PeakMemory(), time.perf_counter()
        infer, size = prepared(tensors)
        facts = {"bytes": size, "quantize_seconds": round(time.perf_counter() - start, 1)}
        facts["quantize_extra_mb"] = round(memory.grown())
    answers = [int(infer(network.prepare(path)).argmax()) for path in scored]
    return {**facts, "answers": answers, "labels": labels}


Quantize = Callable[[Sequence[Float32Array]], tuple[Infer, int]]


def _tool(engine: str, network: Classifier, net: torch.nn.Module, folder: Path, threads: int) -> Quantize:
    """What quantizes on tensors, ready to start, and gives int8 inference and the size of the file."""
    if engine in RECIPES:
        return lambda tensors: with_kvant(engine, net, tensors, folder)
    if engine == "torchao (PT2E)":
        return lambda tensors: with_torchao(net, tensors, folder)
    onnx = folder / "float.onnx"
    export_onnx(net, network.size, onnx)
    tool = OpenVino(onnx, threads) if engine == "NNCF (OpenVINO)" else OnnxRuntime(onnx, threads)

    def quantize(tensors: Sequence[Float32Array]) -> tuple[Infer, int]:
        infer, facts = tool.quantize(tensors)
        return infer, facts["bytes"]

    return quantize


def torch_infer(net: Any) -> Infer:
    """Answers of a PyTorch network."""

    def infer(array: Float32Array) -> Float32Array:
        with torch.no_grad():
            return np.asarray(net(torch.from_numpy(array)).numpy())

    return infer


def with_kvant(engine: str, net: torch.nn.Module, tensors: Sequence[Float32Array], folder: Path) -> tuple[Infer, int]:
    """kvant by one of its recipes."""
    inputs = [torch.from_numpy(tensor) for tensor in tensors]
    data = None if engine == "kvant, no data" else inputs
    quantized = kvant.quantize(net, inputs[0], calibration=data, recipe=RECIPES[engine])
    quantized.save(folder / "model.kvant")
    return kvant.load(folder / "model.kvant"), (folder / "model.kvant").stat().st_size


def with_torchao(net: torch.nn.Module, tensors: Sequence[Float32Array], folder: Path) -> tuple[Infer, int]:
    """torchao's PT2E quantization for x86; the converted network is run as it is, which is what Inductor compiles."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    example = (torch.from_numpy(tensors[0]),)
    with torch.no_grad():
        observed = prepare_pt2e(torch.export.export(net, example).module(), quantizer)
        for tensor in tensors:
            observed(torch.from_numpy(tensor))
        converted = convert_pt2e(observed)
        move_exported_model_to_eval(converted)
        torch.export.save(torch.export.export(converted, example), folder / "torchao.pt2")
    return torch_infer(converted), (folder / "torchao.pt2").stat().st_size


def export_onnx(net: torch.nn.Module, size: int, path: Path) -> None:
    """Write the float network as ONNX."""
    example = torch.zeros(1, 3, size, size)
    torch.onnx.export(
        net, (example,), path, dynamo=True, input_names=["image"], external_data=False, verbose=False
    )  # fmt: skip


def compare(options: Any) -> dict[str, Any]:
    """Measure every engine on every network and return the report, which is written after each network."""
    report = {"calibration_photos": options.calibration, **conditions(options.threads), "results": {}}
    for network in options.networks:
        report["results"][network] = _of_network(network, options)
        report["photos"] = report["results"][network]["float"]["photos"]
        write_json(options.output / "imagenet.json", report)
    return report


def _of_network(network: str, options: Any) -> dict[str, Any]:
    found = {}
    for engine in ("float", *options.engines):
        print(f"{CLASSIFIERS[network].title}, {engine} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            job = {"network": network, "engine": engine, "calibration": options.calibration, "folder": folder}
            found[engine] = in_new_process(__file__, {**job, "photos": options.photos, "threads": options.threads})
    return scores(found)


def scores(found: dict[str, Any]) -> dict[str, Any]:
    """Top-1, and how often an answer is float's, in percent."""
    wanted = found["float"]["answers"]
    return {
        engine: {
            **{name: value for name, value in entry.items() if name not in ("answers", "labels")},
            "photos": len(wanted),
            "top1": _percent(entry["answers"], entry["labels"]),
            "agreement": _percent(entry["answers"], wanted),
        }
        for engine, entry in found.items()
    }


def _percent(answers: Sequence[int], wanted: Sequence[int]) -> float:
    return round(100 * float(np.mean(np.equal(answers, wanted))), 2)


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each network and engine."""
    lines = []
    for network, found in report["results"].items():
        for engine, entry in found.items():
            line = [CLASSIFIERS[network].title, "float32 (torch)", f"{entry['top1']:.1f} %", "", ""]
            line += [f"{entry['bytes'] / 1e6:.2f} MB", "", ""]
            if engine != "float":
                line[1] = engine
                line[3:5] = f"{entry['top1'] - found['float']['top1']:+.1f}", f"{entry['agreement']:.1f} %"
                # A run that had to wait for others has no time of its own.
                seconds = entry["quantize_seconds"]
                line[6:] = "" if seconds is None else f"{seconds:.0f} s", f"{entry['quantize_extra_mb']} MB"
            lines.append(line)
    return lines


def without_data_is_there() -> bool:
    """Whether this version quantizes without data."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    try:
        kvant.quantize(net, torch.zeros(1, 3, 8, 8), calibration=None, progress=False)
    except CalibrationError as error:
        print(f"left out, kvant without data: {error}")
        return False
    return True


def main() -> None:
    job = job_of(sys.argv)
    if job is not None:
        finish(job, measure(job))
        return
    if not IMAGENET.is_dir():
        raise SystemExit(f"no ImageNet photos at {IMAGENET}: set KVANT_SHARED to the folder that holds data/imagenet")
    parser = arguments(__doc__, calibration=64, photos=436)
    parser.add_argument("--networks", nargs="+", choices=list(CLASSIFIERS), default=list(CLASSIFIERS))
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=list(ENGINES), help="tools to compare")
    options = parser.parse_args()
    if "kvant, no data" in options.engines and not without_data_is_there():
        options.engines.remove("kvant, no data")
    print_table(COLUMNS, rows(compare(options)))


if __name__ == "__main__":
    main()
