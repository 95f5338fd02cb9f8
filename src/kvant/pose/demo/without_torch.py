"""The demo's second process: it loads the int8 file and finds people, and importing torch fails in it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kvant
from kvant.pose import PoseEstimator, network_spec, prepare, read_image
from kvant.pose.layout import Float32Array
from kvant.pose.person import Person

_START = """
import sys
sys.modules["torch"] = None
try:
    from kvant.pose.demo.without_torch import main
    main(sys.argv[1])
except KeyboardInterrupt:
    raise SystemExit(130)
"""


@dataclass(frozen=True)
class Job:
    """What the second process is to do; `pictures` are files, results go to `folder`."""

    model: str
    network: str
    pictures: tuple[str, ...]
    folder: str
    height: int
    repeats: int
    threads: int


@dataclass(frozen=True)
class Result:
    """What it found: people and raw outputs of each picture, the median time, and whether torch was there."""

    people: list[list[Person]]
    outputs: list[Float32Array]
    median_ms: float
    torch_imported: bool
    backend: str


def run_without_torch(job: Job) -> Result:
    """Run `job` in a new process and return its result; raises subprocess.CalledProcessError if it fails."""
    folder = Path(job.folder)
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    subprocess.run([sys.executable, "-c", _START, str(folder / "job.json")], check=True)
    found = json.loads((folder / "result.json").read_text())
    people = [[Person(np.array(points, np.float32), score) for points, score in one] for one in found.pop("people")]
    outputs = [np.load(folder / f"{index}.npy") for index in range(len(job.pictures))]
    return Result(people, outputs, **found)


def main(path: str) -> None:
    """Do the job that the file `path` describes and write its result beside it."""
    job = Job(**json.loads(Path(path).read_text()))
    spec = network_spec(job.network)
    model = kvant.load(job.model)
    backend = use_threads(model, job.threads)
    people = []
    infer = Recorder(model)
    estimator = PoseEstimator(infer, network=spec, height=job.height)
    for index, name in enumerate(job.pictures):
        people.append([_plain(person) for person in estimator.detect(read_image(name))])
        np.save(Path(job.folder) / f"{index}.npy", infer.output)
    array, _ = prepare(read_image(job.pictures[0]), spec, job.height)
    found = {
        "people": people,
        "median_ms": median_ms(lambda: model(array), job.repeats),
        "torch_imported": torch_imported(),
        "backend": backend,
    }
    (Path(job.folder) / "result.json").write_text(json.dumps(found))


def use_threads(model: kvant.QuantizedModel, threads: int) -> str:
    """Set how many threads `model` runs on; return its back end's name and instruction set.

    NumPy's integer arithmetic, the reference back end, runs on one thread whatever is asked for.
    """
    if model.backend != "native":
        return model.backend
    from kvant.runtime import native

    native.set_num_threads(threads)
    return f"native, {native.isa()}"


class Recorder:
    """Runs a network of one output and keeps what it returned."""

    def __init__(self, infer: Callable[[Float32Array], Any]) -> None:
        self.infer = infer
        self.output: Float32Array = np.empty(0, np.float32)

    def __call__(self, array: Float32Array) -> Float32Array:
        found = self.infer(array)
        self.output = found[0] if isinstance(found, list) else found
        return self.output


def _plain(person: Person) -> tuple[list[list[float]], float]:
    return person.keypoints.tolist(), float(person.score)


def torch_imported() -> bool:
    """Whether torch, or any module of it, is in this process, or could be imported after all."""
    if any(name.partition(".")[0] == "torch" and module is not None for name, module in sys.modules.items()):
        return True
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median time of `repeats` calls in milliseconds, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))
