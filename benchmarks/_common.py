"""What the benchmarks share: data, memory, conditions of the measurement, JSON, one subprocess a measurement."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from kvant.pose import ONE_SCALE, calibration_inputs, network_spec, read_image
from kvant.pose.demo.environment import cpu_name, versions
from kvant.pose.layout import Float32Array
from kvant.runtime import native

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("KVANT_SHARED", REPOSITORY.parent / "shared"))
COCO = SHARED / "data" / "coco"
SPEC = network_spec("openpose-mobilenet-thin")
PACKAGES = ("torch", "numpy", "openvino", "nncf", "onnx", "onnxruntime", "torchao")


def arguments(description: str | None, **defaults: int) -> argparse.ArgumentParser:
    """A parser with --output, --threads, --height and an integer option for each of `defaults`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "benchmarks", help="folder of the JSON")
    for name, value in {"threads": native.available_processors(), "height": 368, **defaults}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=" ")
    return parser


def require_coco() -> None:
    """Stop with a sentence if the photos are not there."""
    if not COCO.is_dir():
        raise SystemExit(f"no COCO photos at {COCO}: set KVANT_SHARED to the folder that holds data/coco")


def calibration_tensors(count: int, height: int, scales: Sequence[float] = ONE_SCALE) -> list[Float32Array]:
    """The first `count` train photos as the network takes them; they take turns at the scales."""
    paths = sorted((COCO / "train2017").glob("*.jpg"))[:count]
    return list(calibration_inputs(map(read_image, paths), SPEC, height, scales))


def validation_subset(count: int, folder: Path) -> Path:
    """COCO's annotations of the first `count` fully annotated val photos, written to `folder`."""
    content = json.loads((COCO / "person_keypoints_val2017.json").read_text())
    complete = [image for image in content["images"] if image.get("ignore_complete", True) is not False]
    chosen = {image["id"] for image in complete[:count]}
    content["images"] = [image for image in complete if image["id"] in chosen]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


class PeakMemory:
    """Peak of this process's resident memory, in MB, since the object was made; Linux only."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
        self.before = _status("VmRSS")

    def peak(self) -> float:
        """The peak."""
        return _status("VmHWM")

    def grown(self) -> float:
        """The peak minus what was resident at the start."""
        return self.peak() - self.before


def resident_mb() -> float:
    """This process's resident memory."""
    return _status("VmRSS")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no field {field}: the benchmarks need Linux")


def in_new_process(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run `script --job JOB`, a function of this benchmark in a process of its own, and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        threads = str(job["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        command = [sys.executable, script, "--job", json.dumps({**job, "result": str(result)})]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def job_of(argv: Sequence[str]) -> dict[str, Any] | None:
    """The job given by `in_new_process`, or None if a user called."""
    return json.loads(argv[2]) if len(argv) == 3 and argv[1] == "--job" else None


def finish(job: dict[str, Any], result: dict[str, Any]) -> None:
    """Hand `result` to the process that started this one."""
    Path(job["result"]).write_text(json.dumps(result))


def conditions(threads: int) -> dict[str, Any]:
    """Where, when and with what a measurement was made."""
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "cpus": native.available_processors(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2),
        "memory_before": [round(memory_speed(count), 1) for count in (1, threads)],
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "versions": versions(PACKAGES),
    }


def memory_speed(threads: int) -> float:
    """GB a second that so many threads together copy beyond the caches: what else runs on a machine shows in it."""
    count, rounds = 8 << 20, 4  # 64 MB each
    pairs = [(np.ones(count), np.ones(count)) for _ in range(threads)]

    def copy(pair: tuple[Any, Any]) -> None:
        for _ in range(rounds):
            np.copyto(pair[1], pair[0])

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(copy, pairs))
        return 8e-9 * count * rounds * threads / (time.perf_counter() - start)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
    print(f"wrote {path}")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns that line up."""
    widths = [max(len(row[index]) for row in (titles, *rows)) for index in range(len(titles))]
    for row in (titles, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def random_input(height: int = 368, width: int = 432) -> Float32Array:
    """An input of the size at which times are measured."""
    return np.random.default_rng(0).uniform(0, 255, (1, 3, height, width)).astype(np.float32)
