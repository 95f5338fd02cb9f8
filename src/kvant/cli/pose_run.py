"""``kvant pose run``: skeletons on pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from kvant import ImageError, InputError, pose
from kvant.cli import options, output
from kvant.cli.pictures import BrokenPictures
from kvant.cli.pose_options import Height, Network, Pictures, Scales, open_file
from kvant.format import write_atomically

_NAME_BYTES = 255  # of a file's name, on all common file systems


class Format(StrEnum):
    """Formats of drawn pictures."""

    PNG = "png"
    JPG = "jpg"


Folder = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", file_okay=False, help="Where pictures with skeletons go.", show_default=False
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="Format of the drawn pictures.")]


def run(
    file: options.File,
    pictures: Pictures,
    folder: Folder,
    network: Network = None,
    height: Height = 368,
    scales: Scales = "1",
    kind: FormatOption = Format.PNG,
    as_json: Annotated[bool, typer.Option("--json", help="Write key points to DIR/people.json as well.")] = False,
    memory_budget: options.MemoryBudget = None,
    backend: options.BackendOption = None,
) -> None:
    """Find people in pictures and draw their skeletons.

    A picture that cannot be read is named and skipped; the exit code is 1 then.
    """
    paths = pose.find_pictures(pictures)
    estimator = open_file(file, network, height, scales, backend, memory_budget)
    folder.mkdir(parents=True, exist_ok=True)
    targets = output_names(paths, folder, kind)
    records: dict[str, list[dict[str, Any]]] = {}
    broken = BrokenPictures()
    jobs = list(zip(paths, targets, strict=True))
    with (
        output.progress("pictures", len(paths)) as advance,
        closing(estimator.each(partial(_draw_one, estimator), jobs)) as results,
    ):
        for (path, target), found in zip(jobs, results, strict=True):
            with broken.skipped():
                if isinstance(found, Exception):
                    raise found
                records[str(path)] = [person.to_dict() for person in found]
                print(f"{output.clean(path)}: {output.people(len(found))}, {output.clean(target)}")
            advance()
    if as_json:
        write_atomically(folder / "people.json", [json.dumps(records, indent=2).encode()])
    broken.finish()


def _draw_one(estimator: pose.PoseEstimator, job: tuple[Path, Path]) -> list[pose.Person] | ImageError | InputError:
    """Work on one picture; returns the people in it, or why it cannot be read."""
    path, target = job
    try:
        picture = pose.read_image(path)
        with named(path):
            people = estimator.detect(picture)
        write_picture(target, estimator.draw(picture, people))
    except (ImageError, InputError) as error:
        return error
    return people


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Say which picture a model cannot take."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def output_names(images: list[Path], folder: Path, kind: Format = Format.PNG) -> list[Path]:
    """One file name for each picture: none twice, and none that a picture given has itself.

    >>> [path.name for path in output_names([Path("a/x.jpg"), Path("b/x.jpg")], Path("out"))]
    ['x.pose.png', 'x_1.pose.png']
    """
    taken = {path.resolve() for path in images}
    names = []
    for image in images:
        target, count = folder / _name(image.stem, f".pose.{kind}"), 0
        while target.resolve() in taken:
            count += 1
            target = folder / _name(image.stem, f"_{count}.pose.{kind}")
        taken.add(target.resolve())
        names.append(target)
    return names


def _name(stem: str, rest: str) -> str:
    """Both together; of a stem that is too long as much as a file system takes."""
    while len(os.fsencode(stem + rest)) > _NAME_BYTES:
        stem = stem[:-1]
    return stem + rest


def write_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write a picture, whole or not at all, in the format that its name says.

    Raises:
        ImageError: it is larger than the format allows.
    """
    import cv2

    is_encoded, content = cv2.imencode(path.suffix, picture)
    if not is_encoded:
        height, width = picture.shape[:2]
        raise ImageError(f"{path} cannot be written: {width} x {height} pixels are too many for this format")
    write_atomically(path, [content.tobytes()])
