"""Size of what must be installed to run a file: each runtime and what it needs, beside NumPy.

kvant is installed from this repository into an empty folder; the peers are measured where they are installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from _common import REPOSITORY, arguments, conditions, print_table, write_json
from packaging.requirements import Requirement

TITLES = {"kvant": "kvant", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
MB = 1e6


def of_kvant() -> dict[str, float]:
    """Megabytes of each package that `pip install kvant` brings, NumPy apart; byte code included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, str(REPOSITORY)]
        subprocess.run(command, check=True)
        found: dict[str, float] = {}
        for path in Path(folder).rglob("*"):
            name = path.relative_to(folder).parts[0].split("-")[0].split(".")[0]
            if path.is_file() and name != "numpy" and name != "bin":
                found[name] = found.get(name, 0) + path.stat().st_size / MB
        return found


def of_peer(name: str, seen: set[str] | None = None) -> dict[str, float]:
    """Megabytes of a package and of all that it requires, NumPy apart."""
    seen = {"numpy"} if seen is None else seen
    if name in seen:
        return {}
    seen.add(name)
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return {}  # for another platform or Python
    files = [Path(str(package.locate_file(file))) for file in package.files or []]
    found = {name: sum(file.stat().st_size for file in files if file.is_file()) / MB}
    for line in package.requires or []:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            found |= of_peer(needed.name.lower(), seen)
    return found


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each runtime: the sum, and the largest parts."""
    lines = []
    for name, parts in report["results"].items():
        largest = sorted(parts.items(), key=lambda part: -part[1])[:4]
        shown = ", ".join(f"{part} {size:.1f}" for part, size in largest)
        lines.append([TITLES[name], f"{sum(parts.values()):.1f} MB", shown])
    return lines


COLUMNS = ["", "installed, beside NumPy", "largest parts, MB"]


def main() -> None:
    options = arguments(__doc__).parse_args()
    results = {"kvant": of_kvant(), **{name: of_peer(name) for name in ("openvino", "onnxruntime")}}
    rounded = {name: {part: round(size, 2) for part, size in parts.items()} for name, parts in results.items()}
    report = {**conditions(options.threads), "results": rounded}
    write_json(options.output / "installed.json", report)
    print_table(COLUMNS, rows(report))


if __name__ == "__main__":
    main()
