"""Speed of `kvant pose video` beside the bare network: the demo's file and sample video, every frame.

What takes turns: the network alone, on an input that is ready, one frame after the other by all threads; the same with
a frame for each thread, which is how videos are run; with reading and JSON lines; and with the drawn video. Shares are
of the first one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _common import REPOSITORY, arguments, conditions, print_table, write_json

import kvant
from kvant.pose import PoseEstimator, Video, process_video
from kvant.runtime import native

DEMO = REPOSITORY / "build" / "demo"
TITLES = {
    "network": "bare network",
    "side_by_side": "bare network, a frame for each thread",
    "lines": "read, run, JSON lines",
    "drawn": "read, run, draw, JSON lines, encode",
}
COLUMNS = ["", "frames/s", "time a frame", "of the bare network's speed"]


def bare_network(estimator: PoseEstimator, frames: int, at_once: int = 1) -> float:
    """Milliseconds a frame of the network alone."""
    with Video(DEMO / "sample_video.mp4") as video:
        first = next(iter(video)).picture
    array, _ = estimator.prepare(first)

    def run(count: int) -> None:
        for _ in range(count):
            estimator.model(array)

    start = time.perf_counter()
    if at_once == 1:
        run(frames)
    else:
        with ThreadPoolExecutor(at_once, initializer=native.stay_on_thread) as pool:
            list(pool.map(run, [frames // at_once] * at_once))
    return 1000 * (time.perf_counter() - start) / (frames // at_once * at_once)


def whole_video(estimator: PoseEstimator, frames: int, drawn: bool) -> float:
    """Milliseconds a frame of all of it."""
    with tempfile.TemporaryDirectory() as name, Video(DEMO / "sample_video.mp4") as video:
        folder = Path(name)
        target = folder / "drawn.mp4" if drawn else None
        report = process_video(estimator, video, target, folder / "people.jsonl", limit=frames)
    return 1000 / report.rate


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Let them take turns and return the report."""
    estimator = PoseEstimator(DEMO / "openpose_mobilenet_thin.kvant", height=options.height)
    kvant.set_num_threads(options.threads)
    report = {
        "height": options.height,
        "frames": options.frames,
        "rounds": options.rounds,
        **conditions(options.threads),
    }
    times: dict[str, list[float]] = {name: [] for name in TITLES}
    bare_network(estimator, 3)
    for _ in range(options.rounds):
        times["network"].append(bare_network(estimator, options.frames))
        times["side_by_side"].append(bare_network(estimator, options.frames, options.threads))
        times["lines"].append(whole_video(estimator, options.frames, drawn=False))
        times["drawn"].append(whole_video(estimator, options.frames, drawn=True))
    return {**report, "ms": {name: round(statistics.median(found), 2) for name, found in times.items()}}


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each way."""
    bare = report["ms"]["network"]
    return [
        [TITLES[name], f"{1000 / found:.1f}", f"{found:.1f} ms", "" if name == "network" else f"{bare / found:.0%}"]
        for name, found in report["ms"].items()
    ]


def main() -> None:
    if not (DEMO / "sample_video.mp4").exists():
        raise SystemExit(f"no sample video in {DEMO}: make demo")
    parser = arguments(__doc__, frames=230, rounds=5)
    options = parser.parse_args()
    report = measure(options)
    print_table(COLUMNS, rows(report))
    write_json(options.output / "video.json", report)


if __name__ == "__main__":
    main()
