"""Time of a pass through networks that nothing was tuned for: kvant beside OpenVINO, taking turns in one process.

Some forty networks of pytorchcv, with random weights: classifiers, segmentation, poses, faces, detection. All
activations and weights in 8 bits on both sides, as in `runtime.py`. A network that one side cannot take is named, and
left out.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import REPOSITORY, arguments, conditions, finish, in_new_process, job_of, print_table, write_json
from _runtimes import LOADERS, prepare_kvant, quiet_pools

from kvant.pose.layout import Float32Array
from runtime import turn

FILES = REPOSITORY / "build" / "benchmarks" / "zoo"
RUNTIMES = ("kvant", "speed", "openvino")
COLUMNS = [
    "network",
    "size",
    "threads",
    "kvant int8",
    'kvant int8, budget "speed"',
    "OpenVINO int8",
    "kvant is faster by",
]
_SAMPLES = 3


@dataclass(frozen=True)
class Network:
    """One of pytorchcv, at one size."""

    name: str
    size: tuple[int, int] = (224, 224)
    options: dict[str, Any] = field(default_factory=dict)


_HEATS = {"return_heatmap": True}
NETWORKS = (
    *(
        Network(name)
        for name in (
            "bninception", "condensenet74_c4_g4", "densenet121", "dicenet_wd2", "dla34", "dpn68", "espnetv2_wd2",
            "ghostnet", "hardnet39ds", "hrnet_w18_small_v1", "mixnet_s", "mobilenet_w1", "mobilenetv3_large_w1",
            "nasnet_4a1056", "octresnet10_ad2", "peleenet", "resnesta50", "resnext50_32x4d", "scnet50", "selecsls42",
            "seresnet18", "shufflenet_g3_w1", "shufflenetv2_w1", "sknet50", "squeezenet_v1_1", "vovnet39",
        )
    ),
    Network("inceptionv3", (299, 299)),
    Network("xception", (299, 299)),
    *(
        Network(f"{name}_cityscapes", (256, 512))
        for name in ("cgnet", "dabnet", "edanet", "erfnet", "esnet", "lednet", "sinet")
    ),
    Network("fastscnn_cityscapes", (512, 1024), {"in_size": (512, 1024)}),
    Network("unet_cityscapes", (256, 256)),
    Network("bisenet_resnet18_celebamaskhq", (320, 320), {"in_size": (320, 320)}),
    Network("lwopenpose2d_mobilenet_cmupan_coco", (368, 368)),
    Network("simplepose_resnet18_coco", (256, 192), _HEATS),
    Network("simplepose_mobile_mobilenet_w1_coco", (256, 192), _HEATS),
    Network("centernet_resnet18_coco", (256, 256), {**_HEATS, "in_size": (256, 256)}),
    Network("lffd20x5s320v2_widerface", (320, 320)),
    Network("prnet", (256, 256)),
)  # fmt: skip


def inputs(network: Network, count: int) -> list[Float32Array]:
    """Random pictures."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 3, *network.size)).astype(np.float32) for _ in range(count)]


def build(network: Network) -> Any:
    """The float network, in evaluation mode; batch norms that have seen two pictures keep the power of activations."""
    import torch
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    net = get_model(network.name, **network.options)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None
    net.eval()
    for module in norms:
        module.train()
    with torch.no_grad():
        net(torch.from_numpy(np.concatenate(inputs(network, 2))))
    return net.eval()


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Make the files of one network, if they are missing; why it cannot be compared, if it cannot."""
    network = NETWORKS[job["network"]]
    folder = FILES / network.name
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Any, Network, Path], None]] = {"model.kvant": _kvant, "openvino.xml": _openvino}
    missing = [name for name in makers if not (folder / name).exists()]
    net = build(network) if missing else None
    for name in missing:
        try:
            makers[name](net, network, folder)
        except Exception as error:  # what peers raise has no common base; it is reported, by name
            return {"refused": f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return {}


def _kvant(net: Any, network: Network, folder: Path) -> None:
    prepare_kvant(net, inputs(network, _SAMPLES), folder, effort="fast")


def _openvino(net: Any, network: Network, folder: Path) -> None:
    import nncf
    import openvino
    import torch

    samples = inputs(network, _SAMPLES)
    model = openvino.convert_model(net, example_input=torch.from_numpy(samples[0]))
    quantized = nncf.quantize(model, nncf.Dataset(samples), subset_size=_SAMPLES)
    quantized.reshape([1, 3, *network.size])
    openvino.save_model(quantized, folder / "openvino.xml", compress_to_fp16=False)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a pass: the median over rounds in which the runtimes take turns."""
    quiet_pools()
    network = NETWORKS[job["network"]]
    (array,) = inputs(network, 1)
    runs = {name: LOADERS[name](FILES / network.name, job["threads"]) for name in RUNTIMES}
    for infer in runs.values():
        infer(array)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(job["rounds"]):
        for name, infer in runs.items():
            times[name] += turn(infer, [array])
    return {name: round(1000 * statistics.median(found), 3) for name, found in times.items()}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All networks that were asked for."""
    results, refused = [], {}
    for index, network in enumerate(NETWORKS):
        if options.only and not any(part in network.name for part in options.only.split(",")):
            continue
        job = {"network": index, "threads": options.threads, "rounds": options.rounds}
        reason = in_new_process(__file__, {**job, "do": "prepare"}).get("refused")
        if reason:
            refused[network.name] = reason
            print(f"{network.name} is left out: {reason}", flush=True)
            continue
        for threads in sorted({1, options.threads}):
            found = in_new_process(__file__, {**job, "threads": threads, "do": "measure"})
            results.append({"network": network.name, "size": list(network.size), "threads": threads, "ms": found})
            print(f"{network.name}, {threads} threads: {found}", flush=True)
    return {**conditions(options.threads), "rounds": options.rounds, "results": results, "refused": refused}


def _best(entry: dict[str, Any]) -> float:
    return float(min(entry["ms"]["kvant"], entry["ms"]["speed"]))


def _faster(entry: dict[str, Any]) -> float:
    return float(entry["ms"]["openvino"]) / _best(entry)


def _threads(report: dict[str, Any]) -> list[int]:
    return sorted({entry["threads"] for entry in report["results"]})


def columns(report: dict[str, Any]) -> list[str]:
    """Titles of `rows`."""
    counts = [f"{count} thread{'s' if count > 1 else ''}" for count in _threads(report)]
    return ["network", "size", *(f"{name}, {count}" for count in counts for name in ("kvant", "OpenVINO", "faster by"))]


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each network, the slowest ones first: kvant's better budget, OpenVINO, and how many times that is."""
    by_network: dict[str, list[dict[str, Any]]] = {}
    for entry in report["results"]:
        by_network.setdefault(entry["network"], []).append(entry)
    lines = []
    for name, entries in sorted(by_network.items(), key=lambda item: min(map(_faster, item[1]))):
        line = [name, "{} x {}".format(*entries[0]["size"])]
        for entry in sorted(entries, key=lambda each: int(each["threads"])):
            line += [f"{_best(entry):.2f} ms", f"{entry['ms']['openvino']:.2f} ms", f"{_faster(entry):.2f} x"]
        lines.append(line)
    means = ["geometric mean", f"{len(by_network)} networks"]
    for count in _threads(report):
        ratios = [_faster(entry) for entry in report["results"] if entry["threads"] == count]
        means += ["", "", f"{math.exp(statistics.fmean(map(math.log, ratios))):.2f} x"]
    return [*lines, means]


def main() -> None:
    job = job_of(sys.argv)
    if job is not None:
        finish(job, prepare(job) if job["do"] == "prepare" else measure(job))
        return
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--only", default="", help="parts of the names of the networks to measure, with commas")
    options = parser.parse_args()
    report = compare(options)
    print_table(columns(report), rows(report))
    write_json(options.output / "zoo.json", report)


if __name__ == "__main__":
    main()
