"""``kvant pose evaluate``: average precision on COCO, float against int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kvant import pose
from kvant.cli import options, output
from kvant.cli.pictures import BrokenPictures
from kvant.cli.pose_options import Height, Network, Scales, Weights, open_file, open_float
from kvant.format import write_atomically


def evaluate(
    file: options.File,
    annotations: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, metavar="FILE", help="Key points in COCO's format.", show_default=False
        ),
    ],
    images: Annotated[
        Path,
        typer.Option(
            exists=True, file_okay=False, metavar="DIR", help="Where the annotated pictures lie.", show_default=False
        ),
    ],
    weights: Weights = None,
    network: Network = None,
    height: Height = 368,
    scales: Scales = "1",
    all_images: Annotated[
        bool, typer.Option("--all", help="Use pictures with unlabelled people (ignore_complete is false), too.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Use the first N pictures only.")] = None,
    without_float: Annotated[
        bool, typer.Option("--no-float", help="Score the file alone; torch is not needed.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the scores as JSON.", dir_okay=False)
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the people the file found, in COCO's result format.", dir_okay=False),
    ] = None,
    backend: options.BackendOption = None,
) -> None:
    """Score a file, and the float network it was made of, on COCO key points.

    A picture that cannot be read is named and does not count; the exit code is 1 then.
    """
    for target, other in ((report, results), (results, None)):
        if target is not None:
            options.check_writable(target, file, annotations, weights, other)
    estimator = open_file(file, network, height, scales, backend)
    models = {} if without_float else {"float": open_float(estimator, weights)}
    truth = pose.CocoTruth(annotations, images, ignore_incomplete=not all_images, limit=limit)
    scores: dict[str, dict[str, float]] = {}
    broken = BrokenPictures()
    for name, model in {**models, "int8": estimator}.items():
        with output.progress(name, len(truth.images)) as advance:
            found = truth.detect(model, lambda _: advance(), broken.add)
        scores[name] = truth.score(found)
    output.print_table(
        f"{output.clean(file)} on {len(truth.images)} pictures of {output.clean(annotations)}",
        ["", *scores, *(["difference"] if models else [])],
        [_row(name, scores) for name in scores["int8"]],
    )
    if report is not None:
        write_atomically(report, [json.dumps(_report(truth, estimator, scores), indent=2).encode()])
    if results is not None:
        write_atomically(results, [json.dumps(found).encode()])
    broken.finish()


def _row(name: str, scores: dict[str, dict[str, float]]) -> list[str]:
    values = [entry[name] for entry in scores.values()]
    shown = [f"{value:.4f}" for value in values]
    return [name, *shown, *([f"{values[1] - values[0]:+.4f}"] if len(values) == 2 else [])]


def _report(
    truth: pose.CocoTruth, estimator: pose.PoseEstimator, scores: dict[str, dict[str, float]]
) -> dict[str, Any]:
    return {
        "pictures": len(truth.images),
        "network": estimator.network.name,
        "height": estimator.height,
        "scales": list(estimator.scales),
        "scores": scores,
    }
