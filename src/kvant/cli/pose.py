"""``kvant pose``: OpenPose networks, from pictures to a file, and from the file to skeletons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

import kvant
from kvant import pose
from kvant.cli import options, output
from kvant.cli.checkpoint import need_torch
from kvant.cli.quantize import make_recipe
from kvant.format import write_atomically

if TYPE_CHECKING:
    from kvant.pose import NetworkSpec

app = typer.Typer(help="Pose estimation with OpenPose networks.", no_args_is_help=True)
_CHOICES = " or ".join(pose.NETWORKS)


def _check_network(name: str | None) -> str | None:
    if name is not None and name not in pose.NETWORKS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(pose.NETWORKS)}")
    return name


def _check_height(height: int) -> int:
    if height % 8:
        raise typer.BadParameter(f"{height} is no multiple of 8")
    return height


Height = Annotated[
    int,
    typer.Option(min=8, callback=_check_height, help="Pictures are scaled to this height, a multiple of 8."),
]


class PosePictures:
    """Pictures as a pose network wants them, read one by one."""

    def __init__(self, paths: list[Path], spec: NetworkSpec, height: int) -> None:
        self.paths, self.spec, self.height = paths, spec, height

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.float32]]]:
        for path in self.paths:
            yield (pose.prepare(pose.read_image(path), self.spec, self.height)[0],)


@app.command("quantize")
def quantize(
    network: Annotated[
        str, typer.Option(callback=_check_network, metavar="NAME", help=f"The network: {_CHOICES}.", show_default=False)
    ],
    calibration: Annotated[
        Path,
        typer.Option(
            exists=True, file_okay=False, metavar="DIR", help="A folder of pictures with people.", show_default=False
        ),
    ],
    out: options.Out,
    weights: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="A checkpoint, if not the package's weights."),
    ] = None,
    height: Height = 368,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use the first N pictures only.", show_default=False)
    ] = None,
    bits: options.BitsOption = options.Bits.EIGHT,
    wide: options.Wide = None,
    target_sqnr: options.TargetSqnr = None,
    golden: options.GoldenCount = 0,
) -> None:
    """Quantize a pose network to one .kvant file."""
    spec = pose.network_spec(network)
    if weights is None and not spec.has_weights:
        raise typer.BadParameter(f"{network} comes without weights; give a checkpoint with --weights")
    recipe = make_recipe(bits, wide, target_sqnr)
    options.check_writable(out)
    pictures = PosePictures(pose.find_pictures([calibration])[:limit], spec, height)
    need_torch()
    import torch

    example = torch.from_numpy(next(iter(pictures))[0])
    model = spec.build(None if weights is None else str(weights))
    quantized = kvant.quantize(model, example, calibration=pictures, recipe=recipe, metadata=spec.metadata())
    for inputs in islice(pictures, golden):
        quantized.add_golden(*inputs)
    quantized.save(out)
    output.say(f"wrote {out}, {output.megabytes(out.stat().st_size)}, calibrated on {len(pictures)} pictures")


@app.command("run")
def run(
    file: options.File,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.", show_default=False)],
    folder: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            file_okay=False,
            help="Where pictures with skeletons go.",
            show_default=False,
        ),
    ],
    network: Annotated[
        str | None,
        typer.Option(
            callback=_check_network, metavar="NAME", help=f"The network, if the file does not name it: {_CHOICES}."
        ),
    ] = None,
    height: Height = 368,
    as_json: Annotated[bool, typer.Option("--json", help="Write key points to DIR/people.json as well.")] = False,
    backend: options.BackendOption = None,
) -> None:
    """Find people in pictures and draw their skeletons."""
    estimator = pose.PoseEstimator(file, network=network, height=height, backend=backend)
    folder.mkdir(parents=True, exist_ok=True)
    targets = output_names(images, folder)
    records: dict[str, list[dict[str, Any]]] = {}
    for path, target in zip(images, targets, strict=True):
        picture = pose.read_image(path)
        people = estimator.detect(picture)
        _write_picture(target, estimator.draw(picture, people))
        records[str(path)] = [person.to_dict() for person in people]
        print(
            f"{output.clean(path)}: {len(people)} {'person' if len(people) == 1 else 'people'}, {output.clean(target)}"
        )
    if as_json:
        write_atomically(folder / "people.json", [json.dumps(records, indent=2).encode()])


def output_names(images: list[Path], folder: Path) -> list[Path]:
    """One file name for each picture: none twice, and none that a picture given has itself.

    >>> [path.name for path in output_names([Path("a/x.jpg"), Path("b/x.jpg")], Path("out"))]
    ['x.pose.png', 'x_1.pose.png']
    """
    taken = {path.resolve() for path in images}
    names = []
    for image in images:
        target, count = folder / f"{image.stem}.pose.png", 0
        while target.resolve() in taken:
            count += 1
            target = folder / f"{image.stem}_{count}.pose.png"
        taken.add(target.resolve())
        names.append(target)
    return names


def _write_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    import cv2

    encoded = cv2.imencode(".png", picture)[1]
    write_atomically(path, [encoded.tobytes()])
