"""``kvant pose quantize``: pictures with people, and a pose network, to one file."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Annotated

import typer

import kvant
from kvant import pose
from kvant.cli import options, output
from kvant.cli.checkpoint import need_torch
from kvant.cli.pictures import CalibrationPictures
from kvant.cli.pose_options import Height, NetworkName, Weights, parse_scales
from kvant.cli.quantize import make_recipe


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
    prepare = partial(pose.calibration_inputs, spec=spec, height=height, scales=parse_scales(scales))
    pictures = CalibrationPictures(pose.find_pictures(calibration)[:limit], prepare)
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
