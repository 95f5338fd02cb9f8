"""Time from the start of a process to the first result of a saved file, and the process's peak memory.

Each runtime reads the file of OpenPoseVGG at 368 x 368 that `benchmarks/runtime.py` made, in a new process each time;
the runtimes take turns. Imports count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _common import arguments, conditions, finish, in_new_process, job_of, print_table, write_json
from _networks import CASES
from _runtimes import TITLES

from runtime import FILES, prepare

_END = """
import resource, sys
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
PROGRAMS = {
    "kvant": """
import numpy as np, kvant
kvant.load("model.kvant")(np.zeros((1, 3, 368, 368), np.float32))
""",
    "openvino": """
import numpy as np, openvino
openvino.compile_model("openvino.xml", "CPU", {"PERFORMANCE_HINT": "LATENCY"})(np.zeros((1, 3, 368, 368), np.float32))
""",
    "onnxruntime": """
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("onnxruntime.onnx", providers=["CPUExecutionProvider"])
session.run(None, {"image": np.zeros((1, 3, 368, 368), np.float32)})
""",
}
IMPORTS = {"kvant": "import kvant", "openvino": "import openvino", "onnxruntime": "import onnxruntime"}


def run(program: str, folder: Path, threads: int) -> tuple[float, float]:
    """Seconds that a program took in a new process, and its peak memory in MB."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "KVANT_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program + _END], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, int(done.stdout.split()[-1]) / 1024


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds; the first round, which fills the file cache, does not count."""
    folder = FILES / CASES[0].network
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    imports: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds + 1):
        for name, program in PROGRAMS.items():
            result, imported = run(program, folder, threads), run(IMPORTS[name], folder, threads)[0]
            if number:
                found[name].append(result)
                imports[name].append(imported)
    bare = statistics.median(run("pass", folder, threads)[0] for _ in range(rounds))
    return {
        name: {
            "seconds": round(statistics.median(seconds for seconds, _ in values), 3),
            "import_seconds": round(statistics.median(imports[name]) - bare, 3),
            "peak_mb": round(statistics.median(memory for _, memory in values)),
        }
        for name, values in found.items()
    }


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each runtime."""
    return [
        [TITLES[name], f"{each['seconds']:.2f} s", f"{each['import_seconds']:.2f} s", f"{each['peak_mb']} MB"]
        for name, each in report["results"].items()
    ]


COLUMNS = ["", "first result", "of that, import", "peak memory"]


def main() -> None:
    job = job_of(sys.argv)
    if job is not None:
        finish(job, prepare(job))
        return
    options = arguments(__doc__, rounds=5).parse_args()
    in_new_process(__file__, {"case": 0, "network": CASES[0].network, "threads": options.threads})
    results = measure(options.threads, options.rounds)
    report = {**conditions(options.threads), "rounds": options.rounds, "results": results}
    write_json(options.output / "startup.json", report)
    print_table(COLUMNS, rows(report))


if __name__ == "__main__":
    main()
