"""Options that several commands of ``kvant pose`` have, and the estimators that they describe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kvant import InputError, pose
from kvant.cli import options
from kvant.cli.checkpoint import need_torch

CHOICES = " or ".join(pose.NETWORKS)


def _check_network(name: str | None) -> str | None:
    if name is not None and name not in pose.NETWORKS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(pose.NETWORKS)}")
    return name


def parse_scales(text: str) -> tuple[float, ...]:
    """Scales as numbers.

    >>> parse_scales("0.5,1,1.5,2")
    (0.5, 1.0, 1.5, 2.0)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of scales; write it as 0.5,1,1.5,2") from None


NetworkName = Annotated[
    str, typer.Option(callback=_check_network, metavar="NAME", help=f"The network: {CHOICES}.", show_default=False)
]
Network = Annotated[
    str | None,
    typer.Option(
        callback=_check_network,
        metavar="NAME",
        help=f"The network, if the file does not name it: {CHOICES}. Another than it names is an error.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help="A checkpoint of the float network, if not the package's weights.",
        show_default=False,
    ),
]
Height = Annotated[int, typer.Option(min=8, help="Pictures are scaled to this height.")]
Scales = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="The network sees each picture at these multiples of the height; 0.5,1,1.5,2 is slower and finds more.",
    ),
]
Pictures = Annotated[
    list[str], typer.Argument(metavar="PICTURE...", help="Files, folders or patterns.", show_default=False)
]


def open_file(
    file: Path,
    network: str | None,
    height: int,
    scales: str,
    backend: options.Backend | None,
    memory_budget: str | None = None,
) -> pose.PoseEstimator:
    """The estimator of a .kvant file."""
    return pose.PoseEstimator(
        file,
        network=network,
        height=height,
        scales=parse_scales(scales),
        backend=backend,
        memory_budget=options.to_budget(memory_budget),
    )


def open_float(estimator: pose.PoseEstimator, weights: Path | None) -> pose.PoseEstimator:
    """The estimator of the float network that a file was made of, at the same height and scales.

    Raises:
        InputError: it is a network of the user's, or needs a checkpoint.
        CheckpointError: the checkpoint does not fit it.
        MissingDependencyError: torch is missing.
    """
    spec = estimator.network
    if spec.class_name is None:
        raise InputError(f"the file holds {spec.name!r}, whose float network is not part of this package")
    if weights is None and not spec.has_weights:
        raise InputError(f"{spec.name} comes without weights; give its checkpoint with --weights")
    # torch's threads spin while they wait; beside those of the int8 runtime both would be many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    need_torch()
    model = spec.build(None if weights is None else str(weights))
    return pose.PoseEstimator(model, network=spec, height=estimator.height, scales=estimator.scales)
