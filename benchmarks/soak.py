"""Ten thousand detections on pictures of random sizes, one process: does memory grow, does it become slower?

Pictures are parts of one photo, 16 to 640 pixels a side; every tenth is seen at four scales. Sizes differ in nearly
every call, so that whatever is kept for a size is made anew and let go again and again.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
from _common import arguments, conditions, finish, in_new_process, job_of, print_table, resident_mb, write_json

import kvant
from kvant.pose import FOUR_SCALES, PoseEstimator, read_image
from pose import PICTURE, THIN, file_of, prepare_file

BLOCKS = 20
WARM_UP = BLOCKS // 4  # blocks in which memory is still being taken
HEIGHT = 96
SMALLEST, LARGEST = 16, 640


def soak(job: dict[str, Any]) -> dict[str, Any]:
    """Medians over each block of detections: resident memory after one, and the time of one."""
    kvant.set_num_threads(job["threads"])
    model, photo, random = kvant.load(file_of(THIN)), read_image(PICTURE), np.random.default_rng(0)
    fast, four = (PoseEstimator(model, height=HEIGHT, scales=scales) for scales in ((1.0,), FOUR_SCALES))
    height, width = (min(LARGEST, size) for size in photo.shape[:2])
    count = job["detections"] // BLOCKS
    blocks = []
    for _ in range(BLOCKS):
        seconds, memory, people = [], [], 0
        for number in range(count):
            rows, columns = random.integers(SMALLEST, height), random.integers(SMALLEST, width)
            top, left = (random.integers(0, size) for size in (photo.shape[0] - rows, photo.shape[1] - columns))
            picture = photo[top : top + rows, left : left + columns]
            estimator = four if number % 10 == 9 else fast
            start = time.perf_counter()
            people += len(estimator.detect(picture))
            seconds.append(time.perf_counter() - start)
            memory.append(resident_mb())
        blocks.append({"mb": statistics.median(memory), "ms": 1000 * statistics.median(seconds), "people": people})
    return {"blocks": blocks}


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each block."""
    return [
        [str((number + 1) * report["detections"] // BLOCKS), f"{block['mb']:.1f} MB", f"{block['ms']:.2f} ms"]
        for number, block in enumerate(report["blocks"])
    ]


def spread(report: dict[str, Any], what: str) -> float:
    """How far the blocks after the warm-up lie from their median, as a share of it."""
    found = [block[what] for block in report["blocks"][WARM_UP:]]
    middle = statistics.median(found)
    return max(abs(value - middle) for value in found) / middle


def growth(report: dict[str, Any], what: str) -> float:
    """How much more the last quarter of the blocks takes than the first one after the warm-up."""
    blocks = [block[what] for block in report["blocks"]]
    return statistics.median(blocks[-WARM_UP:]) / statistics.median(blocks[WARM_UP : 2 * WARM_UP]) - 1


COLUMNS = ["detections", "resident memory", "median time of a detection"]


def main() -> None:
    job = job_of(sys.argv)
    if job is not None:
        finish(job, prepare_file(job) if job["do"] == "prepare" else soak(job))
        return
    options = arguments(__doc__, detections=10_000).parse_args()
    job = {"network": THIN, "threads": options.threads, "detections": options.detections}
    in_new_process(__file__, {**job, "do": "prepare"})
    before = conditions(options.threads)
    report = {**before, "detections": options.detections, **in_new_process(__file__, {**job, "do": "soak"})}
    report |= {"memory_spread": round(spread(report, "mb"), 4), "time_spread": round(spread(report, "ms"), 4)}
    report |= {"memory_growth": round(growth(report, "mb"), 4), "time_growth": round(growth(report, "ms"), 4)}
    print_table(COLUMNS, rows(report))
    print(
        f"from the second quarter to the last: memory {report['memory_growth']:+.1%}, time {report['time_growth']:+.1%}"
    )
    print(f"memory within {report['memory_spread']:.1%}, time within {report['time_spread']:.1%} of the median")
    write_json(options.output / "soak.json", report)


if __name__ == "__main__":
    main()
