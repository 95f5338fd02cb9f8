"""``kvant pose compare``: float and int8 on the same pictures, person by person."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvant import pose
from kvant.cli import options, output
from kvant.cli.pictures import BrokenPictures
from kvant.cli.pose_options import Height, Network, Pictures, Scales, Weights, open_file, open_float
from kvant.cli.pose_run import (
    Folder,
    Format,
    FormatOption,
    named,
    output_names,
    write_picture,
)
from kvant.format import write_atomically

if TYPE_CHECKING:
    Found = list[tuple[Path, Path, pose.Comparison]]
    """A picture's name, that of what was drawn, and what was found."""

_TITLES = ("float32, torch", "int8, kvant")


def compare(
    file: options.File,
    pictures: Pictures,
    folder: Folder,
    weights: Weights = None,
    network: Network = None,
    height: Height = 368,
    scales: Scales = "1",
    kind: FormatOption = Format.PNG,
    backend: options.BackendOption = None,
) -> None:
    """Find people with a file and with the float network it was made of, and say what differs.

    DIR gets a picture of both beside each other for each picture given, and compare.json.
    """
    paths = pose.find_pictures(pictures)
    estimator = open_file(file, network, height, scales, backend)
    reference = open_float(estimator, weights)
    folder.mkdir(parents=True, exist_ok=True)
    found: Found = []
    broken = BrokenPictures()
    with output.progress("pictures", len(paths)) as advance:
        for path, target in zip(paths, output_names(paths, folder, kind), strict=True):
            with broken.skipped():
                found.append((path, target, _compare_one(reference, estimator, path, target)))
            advance()
    write_atomically(folder / "compare.json", [json.dumps(_report(estimator, found), indent=2).encode()])
    _show(found)
    broken.finish()


def _compare_one(
    reference: pose.PoseEstimator, estimator: pose.PoseEstimator, path: Path, target: Path
) -> pose.Comparison:
    picture = pose.read_image(path)
    with named(path):
        found = pose.compare_estimators(reference, estimator, picture)
    drawn = reference.draw(picture, found.reference), estimator.draw(picture, found.other)
    write_picture(target, pose.side_by_side(*drawn, _TITLES))
    return found


def _report(estimator: pose.PoseEstimator, found: Found) -> dict[str, Any]:
    return {
        "network": estimator.network.name,
        "height": estimator.height,
        "scales": list(estimator.scales),
        **_medians(found),
        "pictures": [_record(*entry) for entry in found],
    }


def _record(path: Path, target: Path, found: pose.Comparison) -> dict[str, Any]:
    return {
        "picture": str(path),
        "drawn": target.name,
        "float_ms": found.reference_ms,
        "int8_ms": found.other_ms,
        "people_float": [person.to_dict() for person in found.reference],
        "people_int8": [person.to_dict() for person in found.other],
        "differences": [entry.to_dict() for entry in found.differences],
    }


def _medians(found: Found) -> dict[str, float]:
    """Median milliseconds a picture; nothing if there is no picture."""
    if not found:
        return {}
    return {
        "float_ms": round(statistics.median(entry.reference_ms for _, _, entry in found), 2),
        "int8_ms": round(statistics.median(entry.other_ms for _, _, entry in found), 2),
    }


def _show(found: Found) -> None:
    rows = [[path.name, *entry.row()] for path, _, comparison in found for entry in comparison.differences]
    output.print_table("What differs, person by person", ["picture", *pose.COMPARISON_COLUMNS], rows)
    both = sum(None not in (entry.reference, entry.other) for _, _, one in found for entry in one.differences)
    print(f"\n{output.people(len(rows))} in {output.counted(len(found), 'picture')}, {both} found by both")
    if found:
        print("float {float_ms} ms, int8 {int8_ms} ms a picture (medians)".format(**_medians(found)))
