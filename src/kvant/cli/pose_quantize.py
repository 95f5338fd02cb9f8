"""``kvant pose quantize``: pictures with people, and a pose network, to one file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

import kvant
from kvant import pose
from kvant.cli import options, output
from kvant.cli.checkpoint import need_torch
from kvant.cli.pose_options import Height, NetworkName, Weights, parse_scales
from kvant.cli.pose_run import BrokenPictures
from kvant.cli.quantize import make_recipe
from kvant.errors import ImageError


class PosePictures:
    """Pictures as a pose network wants them, read one by one; they take turns at the scales.

    Those that cannot be read are `broken`: they are named when they are met first, and left out.
    """

    def __init__(self, paths: list[Path], spec: pose.NetworkSpec, height: int, scales: tuple[float, ...]) -> None:
        self.paths, self.spec, self.height, self.scales = paths, spec, height, scales
        self.broken = BrokenPictures()

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.float32]]]:
        for array in pose.calibration_inputs(self._read(), self.spec, self.height, self.scales):
            yield (array,)

    def first(self) -> npt.NDArray[np.float32]:
        """The first input; raises ImageError if there is none."""
        for (array,) in self:
            return array
        raise ImageError("none of the pictures can be read")

    def _read(self) -> Iterator[npt.NDArray[np.uint8]]:
        for path in tuple(self.paths):
            try:
                picture = pose.read_image(path)
            except ImageError as error:
                self.broken.add(error)
                self.paths.remove(path)
            else:
                yield picture


def quantize(
    network: NetworkName,
    calibration: Annotated[
        list[str],
        typer.Option(
            metavar="PICTURES",
            help="Pictures with people: a folder, a file or a pattern; repeatable.",
            show_default=False,
        ),
    ],
    out: options.Out,
    weights: Weights = None,
    height: Height = 368,
    scales: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="The pictures take turns at these multiples of the height: those at which the file will be used.",
        ),
    ] = "0.5,1,1.5,2",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use the first N pictures only.", show_default=False)
    ] = None,
    bits: options.BitsOption = options.Bits.EIGHT,
    wide: options.Wide = None,
    target_sqnr: options.TargetSqnr = None,
    effort: options.EffortOption = options.Effort.DEFAULT,
    golden: options.GoldenCount = 0,
) -> None:
    """Quantize a pose network to one .kvant file.

    A picture that cannot be read is named and left out; the exit code is 1 then.
    """
    spec = pose.network_spec(network)
    if weights is None and not spec.has_weights:
        raise typer.BadParameter(f"{network} comes without weights; give a checkpoint with --weights")
    recipe = make_recipe(bits, wide, target_sqnr, effort)
    options.check_writable(out, weights)
    pictures = PosePictures(pose.find_pictures(calibration)[:limit], spec, height, parse_scales(scales))
    need_torch()
    import torch

    example = torch.from_numpy(pictures.first())
    model = spec.build(None if weights is None else str(weights))
    quantized = kvant.quantize(model, example, calibration=pictures, recipe=recipe, metadata=spec.metadata())
    for inputs in islice(pictures, golden):
        quantized.add_golden(*inputs)
    quantized.save(out)
    output.say(
        f"wrote {out}, {output.megabytes(out.stat().st_size)}, calibrated on {output.counted(len(pictures), 'picture')}"
    )
    pictures.broken.finish()
