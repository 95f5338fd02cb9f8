"""From a picture in memory to people at four scales: kvant beside the reference method, in one process, taking turns.

The reference method is that of OpenPose's first PyTorch ports (`_reference_pose.py`), with the network in torch float32
and in torch's own int8, in both ways that torch has had: eager quantization, as the project that this one follows used
it, and torchao's PT2E flow compiled by Inductor. OpenPoseVGG has random weights, on which speed does not depend; but
its maps would be noise. So each method runs its network and then decodes the maps that the trained
OpenPoseMobileNetThin returns for the same picture and scale. What decodes is thereby the same everywhere: five people.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _reference_pose as reference
import cv2
import numpy as np
from _common import (
    COCO,
    REPOSITORY,
    SHARED,
    arguments,
    calibration_tensors,
    conditions,
    finish,
    in_new_process,
    job_of,
    print_table,
    write_json,
)
from _networks import build
from _runtimes import prepare_kvant, quiet_pools
from _torch_int8 import compiled_infer, eager_infer

import kvant
from kvant.pose import FOUR_SCALES, ONE_SCALE, PoseEstimator, decode_people, network_spec, prepare, read_image
from kvant.pose.layout import Float32Array

FILES = REPOSITORY / "build" / "benchmarks" / "networks"
VGG, THIN = "openpose-vgg", "openpose-mobilenet-thin"
PICTURE = SHARED / "data" / "seed" / "test.jpg"
PARTS = ("pre", "network", "post")
Infer = Callable[[Float32Array], Any]


def file_of(network: str) -> Path:
    """The file that is measured."""
    return FILES / network / ("four-scales.kvant" if network == THIN else "model.kvant")


def prepare_file(job: dict[str, Any]) -> dict[str, Any]:
    """Quantize, if there is no file yet: OpenPoseMobileNetThin as it is used, OpenPoseVGG all in 8 bits."""
    import torch

    path = file_of(job["network"])
    if path.exists():
        return {}
    path.parent.mkdir(parents=True, exist_ok=True)
    net, spec = build(job["network"]), network_spec(job["network"])
    if job["network"] == THIN:
        tensors = [torch.from_numpy(array) for array in calibration_tensors(134, 368, FOUR_SCALES)]
        kvant.quantize(net, tensors[0], calibration=tensors, metadata=spec.metadata()).save(path)
    else:
        picture = prepare(read_image(PICTURE), spec, 368)[0]
        prepare_kvant(net, [picture] * 2, path.parent)
    return {}


class Timed:
    """A network that says how long it ran, and returns the maps that are to be decoded."""

    def __init__(self, infer: Infer, stand_in: dict[tuple[int, ...], Any] | None = None) -> None:
        self.infer, self.stand_in, self.seconds = infer, stand_in, 0.0

    def __call__(self, array: Float32Array) -> Any:
        start = time.perf_counter()
        outputs = self.infer(array)
        self.seconds += time.perf_counter() - start
        return outputs if self.stand_in is None else self.stand_in[array.shape[2:]]


class Ours:
    """kvant's way: `PoseEstimator`, in its two steps."""

    def __init__(self, infer: Timed, network: str, scales: Sequence[float]) -> None:
        self.infer = infer
        self.estimator = PoseEstimator(infer.infer, network=network, scales=scales)
        self.estimator.run = infer

    def __call__(self, picture: Any) -> tuple[int, dict[str, float]]:
        self.infer.seconds = 0.0
        start = time.perf_counter()
        maps = self.estimator.maps(picture)
        between = time.perf_counter()
        people = decode_people(maps, self.estimator.settings)
        end = time.perf_counter()
        seconds = self.infer.seconds
        return len(people), {"pre": between - start - seconds, "network": seconds, "post": end - between}


class Reference:
    """The reference method: what it does before the maps are there is small, so everything else counts as post."""

    def __init__(self, infer: Timed, network: str) -> None:
        self.infer, self.spec = infer, network_spec(network)

    def __call__(self, picture: Any) -> tuple[int, dict[str, float]]:
        self.infer.seconds = 0.0
        start = time.perf_counter()
        people = reference.detect(
            lambda array: self.spec.output.split(self.infer(array)),
            picture,
            float(np.max(self.spec.input.scale)),
            float(np.max(self.spec.input.offset)),
        )
        seconds = self.infer.seconds
        return len(people), {"pre": 0.0, "network": seconds, "post": time.perf_counter() - start - seconds}


def float_infer(net: Any) -> Infer:
    """The network in torch float32, eager."""
    import torch

    def infer(array: Float32Array) -> Any:
        with torch.inference_mode():
            outputs = net(torch.from_numpy(array))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return infer


def stand_in_maps(picture: Any) -> dict[tuple[int, ...], Any]:
    """(fields, heat maps) of the trained network by the size of its input, for the sizes of both methods."""
    infer, found = float_infer(build(THIN)), {}
    spec, wanted = network_spec(THIN), network_spec(VGG).output.order

    def keep(array: Float32Array) -> Any:
        heat, paf = spec.output.split(infer(array))
        found[array.shape[2:]] = [{"heat": heat, "paf": paf}[name] for name in wanted]
        return heat, paf

    reference.average_maps(keep, picture, 1.0, 0.0)
    for scale in FOUR_SCALES:
        keep(prepare(picture, spec, round(scale * 368))[0])
    return found


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds a picture of every method: medians over rounds in which they take turns."""
    quiet_pools()
    import torch

    torch.set_num_threads(job["threads"])
    kvant.set_num_threads(job["threads"])
    cv2.setNumThreads(job["threads"])
    network, picture = job["network"], read_image(PICTURE)
    net, maps = build(network), stand_in_maps(picture) if network == VGG else None
    engine = None
    methods: dict[str, Any] = {"reference": Reference(Timed(float_infer(net), maps), network)}
    if job["torch_int8"] and network == VGG:
        sample = prepare(picture, network_spec(network), 368)[0]
        eager, engine = eager_infer(net, sample)
        methods["reference-eager"] = Reference(Timed(eager, maps), network)
        methods["reference-int8"] = Reference(Timed(compiled_infer(net, sample), maps), network)
    methods["kvant"] = Ours(Timed(kvant.load(file_of(network)), maps), network, FOUR_SCALES)
    if network == VGG:
        fast = kvant.load(file_of(network), memory_budget="speed")
        methods["kvant-speed"] = Ours(Timed(fast, maps), network, FOUR_SCALES)
    methods["kvant-one-scale"] = Ours(Timed(kvant.load(file_of(network)), maps), network, ONE_SCALE)
    found = _take_turns(methods, picture, job["rounds"])
    if engine is not None:
        found["methods"]["reference-eager"]["engine"] = engine
    return found


def _take_turns(methods: dict[str, Any], picture: Any, rounds: int) -> dict[str, Any]:
    for name, method in methods.items():
        if name != "reference":  # eager float32 has nothing to make ready
            method(picture)
    people: dict[str, int] = {}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            if "kvant" in name:
                method(picture)  # what ran before has emptied the caches, which a user's second picture finds filled
            people[name], parts = method(picture)
            times[name].append(parts)
    found = {}
    for name, entries in times.items():
        middle = sorted(entries, key=lambda entry: sum(entry.values()))[(len(entries) - 1) // 2]
        seconds = statistics.median(sum(entry.values()) for entry in entries)
        found[name] = {"seconds": seconds, "people": people[name], **{part: middle[part] for part in PARTS}}
    return {"size": list(picture.shape[:2]), "methods": found}


TITLES = {
    "reference": "reference method, torch float32",
    "reference-eager": "reference method, torch int8 (eager, {engine})",
    "reference-int8": "reference method, torch int8 (PT2E, Inductor)",
    "kvant": "kvant",
    "kvant-speed": 'kvant, budget "speed"',
    "kvant-one-scale": "kvant, one scale",
}
COLUMNS = ["network", "method", "a picture", "kvant's speed-up", "pre", "network's share", "post", "people"]


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each network and method; speed-ups over that row are those of four scales, then with budget "speed"."""
    lines = []
    for entry in report["results"]:
        methods = entry["methods"]
        mine = [methods[name]["seconds"] for name in ("kvant", "kvant-speed") if name in methods]
        for name, found in methods.items():
            ratios = ", ".join(f"{found['seconds'] / seconds:.1f} x" for seconds in mine)
            total = sum(found[part] for part in PARTS)
            lines.append(
                [
                    entry["network"], TITLES[name].format(**found), _time(found["seconds"]),
                    ratios if "reference" in name else "",
                    _time(found["pre"]) if found["pre"] else "", f"{found['network'] / total:.0%}",
                    _time(found["post"]), str(found["people"]),
                ]
            )  # fmt: skip
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both networks, each in a process of its own."""
    results = []
    for network in options.networks:
        job = {"network": network, "threads": options.threads, "rounds": options.rounds}
        in_new_process(__file__, {**job, "do": "prepare"})
        print(f"{network} ...", flush=True)
        found = in_new_process(__file__, {**job, "do": "measure", "torch_int8": not options.no_torch_int8})
        results.append({"network": network, **found})
    return {**conditions(options.threads), "rounds": options.rounds, "results": results}


def merged(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """`report`, and the networks that it lacks as an earlier run under the same conditions found them."""
    if not path.exists():
        return report
    before = json.loads(path.read_text())
    same = ("cpu", "cpus", "threads", "rounds", "versions")
    if any(before.get(name) != report[name] for name in same):
        return report
    found = {entry["network"]: entry for entry in (*before["results"], *report["results"])}
    return {**report, "results": [found[name] for name in (VGG, THIN) if name in found]}


def main() -> None:
    job = job_of(sys.argv)
    if job is not None:
        finish(job, prepare_file(job) if job["do"] == "prepare" else measure(job))
        return
    parser = arguments(__doc__, rounds=3)
    parser.add_argument(
        "--networks",
        nargs="*",
        choices=[VGG, THIN],
        default=[VGG, THIN],
        help="what to measure; results of others are kept",
    )
    parser.add_argument("--no-torch-int8", action="store_true", help="leave out what torchao is needed for")
    options = parser.parse_args()
    for path in (PICTURE, COCO):
        if not path.exists():
            raise SystemExit(f"no {path}: set KVANT_SHARED to the folder that holds data/seed and data/coco")
    path = options.output / "pose.json"
    report = merged(compare(options), path)
    print_table(COLUMNS, rows(report))
    write_json(path, report)


if __name__ == "__main__":
    main()
