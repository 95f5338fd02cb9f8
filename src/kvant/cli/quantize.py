"""``kvant quantize``: a model of the user's, with weights and calibration data, to a .kvant file."""

from __future__ import annotations

import inspect
import json
import math
import re
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import kvant
from kvant.cli import options, output
from kvant.cli.calibration import PictureSpec, open_calibration
from kvant.cli.checkpoint import build_model
from kvant.cli.pictures import CalibrationPictures

if TYPE_CHECKING:
    import torch


class Color(StrEnum):
    """Order of the channels of a picture."""

    RGB = "rgb"
    BGR = "bgr"


_MOST_VALUES = 2**32  # of an example
_LARGE = 1e6  # of means and deviations of what is 0 to 1
_SHAPE = re.compile(r"([1-9][0-9]{0,18}(?:,[1-9][0-9]{0,18})*)(?::(float32|int64))?")


def parse_shape(text: str) -> tuple[tuple[int, ...], Literal["float32", "int64"]]:
    """Shape and type of an example input.

    >>> parse_shape("1,3,224,224")
    ((1, 3, 224, 224), 'float32')
    >>> parse_shape("1,128:int64")
    ((1, 128), 'int64')
    """
    found = _SHAPE.fullmatch(text.replace(" ", ""))
    if found is None:
        raise typer.BadParameter(f"{text!r} is no shape; write it as 1,3,224,224 or 1,128:int64")
    shape = tuple(int(size) for size in found[1].split(","))
    if math.prod(shape) > _MOST_VALUES:
        raise typer.BadParameter(f"{text!r} has more than {_MOST_VALUES:,} values; give a smaller one")
    return shape, "int64" if found[2] == "int64" else "float32"


def parse_numbers(text: str) -> tuple[float, ...]:
    """One number for each channel, or one for all.

    >>> parse_numbers("0.5,0.5,0.25")
    (0.5, 0.5, 0.25)
    """
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers; write it as 0.485,0.456,0.406") from None


def picture_spec(size: str | None, mean: str, std: str, color: Color, example: tuple[int, ...]) -> PictureSpec:
    """The pre-processing that the options describe; the size is that of the example input if it is not given."""
    of_example = example[2:] if len(example) == 4 else (1, 1)
    wanted = of_example if size is None else parse_shape(size)[0]
    if len(wanted) not in (1, 2):
        raise typer.BadParameter(f"--size {size} is no size; write it as 224 or 368,432 (height, width)")
    means, deviations = parse_numbers(mean), parse_numbers(std)
    counts_fit = len(means) in (1, 3) and len(deviations) in (1, 3)
    if not counts_fit or not all(abs(value) < _LARGE for value in means):
        raise typer.BadParameter("--mean and --std take one number or three, such as 0.485,0.456,0.406")
    if not all(1 / _LARGE < value < _LARGE for value in deviations):
        raise typer.BadParameter(
            f"--std takes positive numbers, no more than {_LARGE:g} and no less than {1 / _LARGE:g}"
        )
    return PictureSpec((wanted[0], wanted[-1]), means, deviations, "bgr" if color is Color.BGR else "rgb")


def make_recipe(
    bits: options.Bits,
    wide: list[str] | None,
    target_sqnr: float | None,
    effort: options.Effort,
    file: Path | None = None,
) -> kvant.Recipe:
    """The recipe that the options describe, or that a TOML file holds."""
    if file is not None:
        others = bits is not options.Bits.EIGHT, wide, target_sqnr is not None, effort is not options.Effort.DEFAULT
        if any(others):
            raise typer.BadParameter(
                "--recipe says everything: give it without --bits, --wide, --target-sqnr and --effort"
            )
        return kvant.Recipe.load(file)
    chosen: dict[str, Any] = {
        "activations": kvant.ActivationScheme(16 if bits is options.Bits.SIXTEEN else 8),
        "wide": tuple(wide or ()),
        "effort": effort.value,
    }
    if target_sqnr is not None:
        chosen["target_sqnr"] = target_sqnr
    return kvant.Recipe(**chosen)


def quantize(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="A callable that makes the torch.nn.Module, such as mynet:build.",
            show_default=False,
        ),
    ],
    example: Annotated[
        list[str],
        typer.Option(
            metavar="SHAPE", help="Shape of an input: 1,3,224,224 or 1,128:int64; repeatable.", show_default=False
        ),
    ],
    out: options.Out,
    calibration: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            metavar="DIR|FILE",
            help="A folder of pictures, or an .npz file whose first axis counts samples. Without it inputs are "
            "generated from what batch norms remember.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="State dict: .pt, .pth or .safetensors.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="H,W", help="Size of pictures, if not that of the example.", show_default=False),
    ] = None,
    mean: Annotated[str, typer.Option(help="Subtracted from pixels in 0..1, by channel.")] = "0.485,0.456,0.406",
    std: Annotated[str, typer.Option(help="Divides what is left, by channel.")] = "0.229,0.224,0.225",
    color: Annotated[Color, typer.Option(help="Order of a picture's channels.")] = Color.RGB,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use the first N samples only.", show_default=False)
    ] = None,
    bits: options.BitsOption = options.Bits.EIGHT,
    wide: options.Wide = None,
    target_sqnr: options.TargetSqnr = None,
    effort: options.EffortOption = options.Effort.DEFAULT,
    recipe: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="FILE", help="A recipe in TOML (docs/schemes.md).", show_default=False
        ),
    ] = None,
    golden: options.GoldenCount = 0,
) -> None:
    """Quantize a model to one .kvant file.

    Pictures are scaled to cover the size, the middle is cut out, and pixels become (pixel / 255 - mean) / std. A
    picture that cannot be read is named and left out; the exit code is 1 then.
    """
    shapes = [parse_shape(text) for text in example]
    spec = picture_spec(size, mean, std, color, shapes[0][0])
    chosen = make_recipe(bits, wide, target_sqnr, effort, recipe)
    options.check_writable(out, calibration, weights, recipe)
    model = build_model(target, weights)
    if calibration is None:
        if limit is not None or golden:
            raise typer.BadParameter("--limit and --golden need --calibration")
        data, inputs = None, _examples(shapes, spec)
    else:
        data, inputs = open_calibration(calibration, input_names(model, len(shapes)), spec, limit), _examples(shapes)
    metadata = {"preprocessing": json.dumps(spec.to_dict())} if isinstance(data, CalibrationPictures) else {}
    quantized = kvant.quantize(model, inputs, calibration=data, recipe=chosen, metadata=metadata)
    for sample in islice(data or (), golden):
        quantized.add_golden(*sample)
    quantized.save(out)
    done = quantized.metadata["calibration"] if data is None else f"calibrated on {len(data)} inputs"
    output.say(f"wrote {out}, {output.megabytes(out.stat().st_size)}, {done}")
    if isinstance(data, CalibrationPictures):
        data.broken.finish()


def input_names(model: torch.nn.Module, count: int) -> list[str]:
    """Names of the first ``count`` arguments of the model, as an .npz file may name them."""
    return list(inspect.signature(model.forward).parameters)[:count]


def _examples(
    shapes: list[tuple[tuple[int, ...], Literal["float32", "int64"]]], spec: PictureSpec | None = None
) -> tuple[torch.Tensor, ...]:
    """An input of each shape; with ``spec`` those with the shape of pictures have their values too."""
    import torch

    numbers = torch.Generator().manual_seed(0)

    def example(shape: tuple[int, ...]) -> torch.Tensor:
        unit = torch.rand(shape, generator=numbers)
        if spec is None or len(shape) != 4 or shape[1] != 3:
            return unit
        return (unit - torch.tensor(spec.mean).reshape(-1, 1, 1)) / torch.tensor(spec.std).reshape(-1, 1, 1)

    return tuple(
        torch.zeros(shape, dtype=torch.int64) if dtype == "int64" else example(shape) for shape, dtype in shapes
    )
