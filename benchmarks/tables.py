"""Write the tables of docs/benchmarks.md and README.md, and README's picture, from what was measured last.

Each table lies between the lines `<!-- table: NAME -->` and `<!-- end -->`. Tables whose JSON is missing stay.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import accuracy
import calibration
import cv2
import digits
import imagenet
import installed
import kernels
import sentences
import soak
import startup
import video
import zoo
from _common import REPOSITORY

import pose
import runtime
from kvant.pose.demo.report import shares_text

Report = dict[str, Any]
PAGES = ("docs/benchmarks.md", "docs/guides/pose.md", "README.md")
PICTURE = "docs/images/demo.jpg"
PICTURE_WIDTH = 1280


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; columns in which nothing stands are left out."""
    kept = [index for index, _ in enumerate(titles) if not rows or any(row[index] for row in rows)]
    titles, rows = [titles[index] for index in kept], [[row[index] for index in kept] for row in rows]
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(report: Report) -> str:
    """One line: where and with what it was measured."""
    packages = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    threads = f"{report['threads']} thread{'s' if report['threads'] != 1 else ''}"
    measured = [report["date"]] if "date" in report else []
    if "load_before" in report:
        measured.append(f"load {report['load_before']} before")
    if "memory_before" in report:
        measured.append("one thread copied {} GB/s, all {}".format(*report["memory_before"]))
    return f"{report['cpu']}, {threads}; {packages}" + (f" ({', '.join(measured)})" if measured else "") + "."


def demo_table(report: Report) -> str:
    """README's table: the demo's summary."""
    found = report["people_found"]
    size = " x ".join(map(str, report["input"][2:]))
    rows = [
        ["size of the file", f"{report['float_bytes'] / 1e6:.2f} MB", f"{report['file_bytes'] / 1e6:.2f} MB"],
        [f"time a picture, {size}", f"{report['float_ms']:.0f} ms", f"{report['int8_ms']:.0f} ms"],
        ["people found", str(report["people_float"]), f"{report['people_int8']}, {found} of them the same"],
        ["key points found", str(report["keypoints_float"]), f"{report['keypoint_agreement']:.1%} of these"],
        [
            "multiplications",
            "float32",
            shares_text(report),
        ],
    ]
    table = markdown(["", "float32, torch", f"kvant ({report['backend']})"], rows)
    pictures = f"{len(report['pictures'])} frames of the sample video; quantized in {report['quantize_seconds']:.0f} s"
    return f"{table}\n\n{pictures}. {conditions(report)}"


def accuracy_table(report: Report) -> str:
    """Average precision of every tool."""
    table = markdown(accuracy.COLUMNS, accuracy.rows(report))
    photos = f"{report['val_photos']} val photos, calibrated on {report['calibration_photos']} train photos"
    lines = [table, "", f"{photos}. {conditions(report)}"]
    if "kvant" in report["results"]:
        lines += ["", f"Multiplications in kvant's default file: {shares_text(report['results']['kvant'])}."]
    return "\n".join(lines)


def calibration_table(report: Report) -> str:
    """Cost of calibration."""
    table = markdown(calibration.COLUMNS, calibration.rows(report))
    how = f"kvant's passes took turns with plain float passes, medians of {report['rounds']}"
    return f"{table}\n\n{how}. {conditions(report)}"


def runtime_table(report: Report) -> str:
    """Whole networks."""
    table = markdown(runtime.COLUMNS, runtime.rows(report))
    return f"{table}\n\nMedians of {report['rounds']} rounds. {conditions(report)}"


def zoo_table(report: Report) -> str:
    """Networks that nothing was tuned for."""
    table = markdown(zoo.columns(report), zoo.rows(report))
    refused = "".join(f" Left out: {name} ({reason})." for name, reason in report["refused"].items())
    return f"{table}\n\nMedians of {report['rounds']} rounds.{refused} {conditions(report)}"


def speed_table(report: Report) -> str:
    """README's table: whole networks, one picture at a time, on all threads."""
    chosen = [entry for entry in report["results"] if entry["batch"] == 1 and entry["threads"] == report["threads"]]
    table = markdown(
        [title for title in runtime.COLUMNS if title not in ("batch", "threads")],
        [[row[0], *row[3:]] for row in runtime.rows({"results": chosen})],
    )
    return f"{table}\n\n{conditions(report)}"


def startup_table(report: Report) -> str:
    """New processes."""
    return f"{markdown(startup.COLUMNS, startup.rows(report))}\n\n{conditions(report)}"


def installed_table(report: Report) -> str:
    """What must be installed."""
    return f"{markdown(installed.COLUMNS, installed.rows(report))}\n\n{conditions(report)}"


def kernels_table(report: Report) -> str:
    """Single layers."""
    table = markdown(kernels.COLUMNS, kernels.rows(report))
    return f"{table}\n\nPeak: of vpdpbusd, GMAC/s. {conditions(report)}"


def digits_table(report: Report) -> str:
    """Small networks by scheme."""
    return f"{markdown(digits.COLUMNS, digits.rows(report))}\n\n{report['pictures']} pictures. {conditions(report)}"


def imagenet_table(report: Report) -> str:
    """Classifiers with real weights."""
    photos = f"{report['photos']} photos, calibrated on {report['calibration_photos']} others"
    return f"{markdown(imagenet.COLUMNS, imagenet.rows(report))}\n\n{photos}. {conditions(report)}"


def sentences_table(report: Report) -> str:
    """A transformer."""
    texts = f"{report['sentences']} sentences, calibrated on {report['calibration_sentences']} others"
    return f"{markdown(sentences.COLUMNS, sentences.rows(report))}\n\n{texts}. {conditions(report)}"


def pose_table(report: Report) -> str:
    """From pictures to people."""
    size = " x ".join(map(str, report["results"][0]["size"]))
    how = f"A picture of {size} pixels, medians of {report['rounds']} rounds"
    return f"{markdown(pose.COLUMNS, pose.rows(report))}\n\n{how}. {conditions(report)}"


def video_table(report: Report) -> str:
    """A whole video beside the bare network."""
    how = f"{report['frames']} frames at height {report['height']}, medians of {report['rounds']} rounds"
    return f"{markdown(video.COLUMNS, video.rows(report))}\n\n{how}. {conditions(report)}"


def soak_table(report: Report) -> str:
    """Memory and time over many detections."""
    shown = soak.rows(report)[soak.WARM_UP - 1 :: soak.WARM_UP]
    how = (
        f"From the second quarter to the last: memory {report['memory_growth']:+.1%}, "
        f"time {report['time_growth']:+.1%}; "
        f"memory within {report['memory_spread']:.1%} of its median"
    )
    return f"{markdown(soak.COLUMNS, shown)}\n\n{how}. {conditions(report)}"


TABLES: dict[str, tuple[str, Callable[[Report], str]]] = {
    "demo": ("demo/summary.json", demo_table),
    "accuracy": ("benchmarks/accuracy.json", accuracy_table),
    "calibration": ("benchmarks/calibration.json", calibration_table),
    "speed": ("benchmarks/runtime.json", speed_table),
    "digits": ("benchmarks/digits.json", digits_table),
    "imagenet": ("benchmarks/imagenet.json", imagenet_table),
    "sentences": ("benchmarks/sentences.json", sentences_table),
    "runtime-avx2": ("benchmarks/runtime-avx2.json", runtime_table),
    "runtime": ("benchmarks/runtime.json", runtime_table),
    "zoo": ("benchmarks/zoo.json", zoo_table),
    "pose": ("benchmarks/pose.json", pose_table),
    "video": ("benchmarks/video.json", video_table),
    "soak": ("benchmarks/soak.json", soak_table),
    "startup": ("benchmarks/startup.json", startup_table),
    "installed": ("benchmarks/installed.json", installed_table),
    "kernels": ("benchmarks/kernels.json", kernels_table),
}


def rewrite(text: str, build: Path) -> str:
    """`text` with every marked table whose JSON exists replaced."""
    for name, (file, table) in TABLES.items():
        if (build / file).exists():
            body = table(json.loads((build / file).read_text()))
            pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            text = pattern.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    return text


def write_picture(build: Path, name: str | None, target: Path) -> None:
    """README's picture: one of the demo's, smaller."""
    summary = build / "demo" / "summary.json"
    if not summary.exists():
        return
    names = json.loads(summary.read_text())["pictures"]
    name = name or names[len(names) // 2]
    picture = cv2.imread(str(build / "demo" / name))
    if picture is None:
        raise SystemExit(f"{build / 'demo' / name} is not a picture")
    height = round(picture.shape[0] * PICTURE_WIDTH / picture.shape[1])
    smaller = cv2.resize(picture, (PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), smaller, [cv2.IMWRITE_JPEG_QUALITY, 88])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build", help="folder of the measurements")
    parser.add_argument("--picture", help="which of the demo's pictures README shows, such as frame_105.png")
    options = parser.parse_args()
    for page in PAGES:
        path = REPOSITORY / page
        path.write_text(rewrite(path.read_text(), options.build))
    write_picture(options.build, options.picture, REPOSITORY / PICTURE)


if __name__ == "__main__":
    main()
