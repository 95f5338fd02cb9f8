"""The demo's steps: calibrate and quantize in this process, run the file in another one, compare, report."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
from rich.console import Console

import kvant
from kvant.pose.calibration import calibration_inputs
from kvant.pose.demo.environment import cpu_name, versions
from kvant.pose.demo.pictures import DemoError, Pictures, folder_pictures, sample_video, split, video_pictures
from kvant.pose.demo.report import agreement_fields, broken_promises, output_sqnr, show
from kvant.pose.demo.without_torch import Job, Recorder, Result, median_ms, run_without_torch
from kvant.pose.draw import draw_people, side_by_side
from kvant.pose.estimator import ONE_SCALE, PoseEstimator, as_function
from kvant.pose.evaluate import Agreement, keypoint_agreement
from kvant.pose.layout import Float32Array
from kvant.pose.person import Person
from kvant.pose.pictures import Picture
from kvant.pose.preprocess import prepare
from kvant.pose.spec import network_spec
from kvant.runtime import native

if TYPE_CHECKING:
    import torch

    from kvant.runtime import QuantizedModel

__all__ = ["DemoError", "Options", "run"]

SPEC = network_spec("openpose-mobilenet-thin")
FILE_NAME = "openpose_mobilenet_thin.kvant"


@dataclass(frozen=True)
class Options:
    """What to run: `images` is a folder of pictures, None takes the sample video; `repeats` are timed runs."""

    images: Path | None = None
    output: Path = Path("build/demo")
    calibration: int = 40
    frames: int = 12
    height: int = 368
    threads: int = field(default_factory=native.available_processors)
    repeats: int = 9


@dataclass
class Float:
    """Results of the float network, in the order of the pictures."""

    people: list[list[Person]]
    outputs: list[Float32Array]
    median_ms: float


def run(options: Options) -> list[str]:
    """Run the demo and return a sentence for each promise that does not hold.

    Results appear in `options.output` when everything is done: pictures, the file, `summary.json`. Raises DemoError
    if there are no pictures or the second process fails.
    """
    console, load = Console(), os.getloadavg()[0]
    options.output.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(options, console)
    calibration, compared = split(len(pictures.names), options.calibration, options.frames)
    with tempfile.TemporaryDirectory(dir=options.output, prefix=".work-") as name:
        work = Path(name)
        net = _float_network(options.threads)
        _say(console, f"Calibrating on {len(calibration)} pictures and quantizing ...")
        start = time.perf_counter()
        _quantize(net, pictures, calibration, options.height).save(work / FILE_NAME)
        seconds = time.perf_counter() - start
        held_out = list(pictures.read(compared))
        _say(console, f"Running the float network on {len(held_out)} other pictures ...")
        reference = _run_float(net, held_out, options)
        _say(console, "Running the file in a process without torch ...")
        result = _run_int8(work, held_out, options)
        names = [pictures.names[number] for number in compared]
        summary = _summary(net, work / FILE_NAME, held_out[0], reference, result, options)
        summary |= {"calibration_pictures": len(calibration), "quantize_seconds": round(seconds, 1)}
        summary |= {"date": date.today().isoformat(), "load_before": round(load, 2)}
        summary["pictures"] = _draw(work, names, held_out, reference, result)
        (work / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        for file in (*summary["pictures"], FILE_NAME, "summary.json"):
            os.replace(work / file, options.output / file)
    show(summary, console)
    _say(console, f"Pictures, file and summary.json are in {options.output}")
    return broken_promises(summary)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _pictures(options: Options, console: Console) -> Pictures:
    if options.images is not None:
        return folder_pictures(options.images)
    _say(console, "Getting the sample video ...")
    return video_pictures(sample_video(options.output))


def _float_network(threads: int) -> torch.nn.Module:
    # torch's threads spin while they wait for each other; on a machine that does anything else, that makes them many
    # times slower than sleeping does. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads)
    return SPEC.build()


def _quantize(net: torch.nn.Module, pictures: Pictures, numbers: Sequence[int], height: int) -> QuantizedModel:
    import torch

    first = torch.from_numpy(prepare(next(pictures.read(numbers[:1])), SPEC, height)[0])
    inputs = calibration_inputs(pictures.read(numbers), SPEC, height, ONE_SCALE)
    return kvant.quantize(net, first, calibration=inputs, metadata=SPEC.metadata())


def _run_float(net: torch.nn.Module, held_out: Sequence[Picture], options: Options) -> Float:
    infer = Recorder(as_function(net))
    estimator = PoseEstimator(infer, network=SPEC, height=options.height)
    result = Float([], [], 0.0)
    for picture in held_out:
        result.people.append(estimator.detect(picture))
        result.outputs.append(infer.output)
    array, _ = prepare(held_out[0], SPEC, options.height)
    result.median_ms = median_ms(lambda: infer(array), options.repeats)
    return result


def _run_int8(work: Path, held_out: Sequence[Picture], options: Options) -> Result:
    paths = [str(work / f"input_{index}.png") for index in range(len(held_out))]
    for path, picture in zip(paths, held_out, strict=True):
        cv2.imwrite(path, picture)
    model = str(work / FILE_NAME)
    job = Job(model, SPEC.name, tuple(paths), str(work), options.height, options.repeats, options.threads)
    try:
        return run_without_torch(job)
    except subprocess.CalledProcessError as error:
        raise DemoError(f"the process without torch failed (exit code {error.returncode}); see above") from error


def _summary(
    net: torch.nn.Module, file: Path, first: Picture, reference: Float, result: Result, options: Options
) -> dict[str, Any]:
    pairs = zip(reference.people, result.people, strict=True)
    agreement = sum((keypoint_agreement(ours, theirs) for ours, theirs in pairs), Agreement())
    return {
        "network": SPEC.name,
        "input": list(prepare(first, SPEC, options.height)[0].shape),
        "float_bytes": sum(value.numel() * value.element_size() for value in net.state_dict().values()),
        "file_bytes": file.stat().st_size,
        "float_ms": round(reference.median_ms, 2),
        "int8_ms": round(result.median_ms, 2),
        "threads": options.threads,
        "people_float": sum(map(len, reference.people)),
        "people_int8": sum(map(len, result.people)),
        **agreement_fields(agreement),
        "sqnr_db": output_sqnr(SPEC, reference.outputs, result.outputs),
        **multiplication_shares(kvant.load(file)),
        "torch_imported": result.torch_imported,
        "backend": result.backend,
        "cpu": cpu_name(),
        "versions": versions(("torch", "numpy", "opencv-python-headless")),
    }


def multiplication_shares(model: QuantizedModel) -> dict[str, float]:
    """Share of the network's multiplications by how many of the two operands have 16 bits (8 bits signed or not)."""
    counts = dict.fromkeys(("int8xint8", "int16xint8", "int16xint16"), 0)
    for entry in model.macs():
        counts[tuple(counts)[entry.dtypes.count("int16")]] += entry.count
    total = sum(counts.values())
    return {name: round(count / total, 4) for name, count in counts.items()}


def _draw(work: Path, names: Sequence[str], held_out: Sequence[Picture], reference: Float, result: Result) -> list[str]:
    """Draw float and int8 skeletons beside each other; return the names of the files."""
    files = []
    for name, picture, ours, theirs in zip(names, held_out, reference.people, result.people, strict=True):
        both = side_by_side(draw_people(picture, ours), draw_people(picture, theirs), ("float32, torch", "int8, kvant"))
        files.append(f"{name}.png")
        cv2.imwrite(str(work / files[-1]), both)
    return files
