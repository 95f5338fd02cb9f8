"""``kvant pose serve``: a web page that shows float and int8 beside each other."""

from __future__ import annotations

from typing import Annotated

import typer

from kvant import pose
from kvant.cli import options
from kvant.cli.pose_options import Height, Network, Scales, Weights, open_file, open_float


def serve(
    file: options.File,
    host: Annotated[
        str, typer.Option(help="The address to listen at; others than this one open it to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    upload_mb: Annotated[int, typer.Option(min=1, max=1000, help="Largest file that may be sent.")] = 20,
    megapixels: Annotated[int, typer.Option(min=1, max=100, help="Largest picture that may be sent.")] = 40,
    weights: Weights = None,
    network: Network = None,
    height: Height = 368,
    scales: Scales = "1",
    memory_budget: options.MemoryBudget = None,
    backend: options.BackendOption = None,
) -> None:
    """Serve a page on which a picture shows the skeletons of float and int8, until Ctrl-C."""
    estimator = open_file(file, network, height, scales, backend, memory_budget)
    reference = open_float(estimator, weights)
    models = pose.PageModels(reference, estimator, file.stat().st_size)
    limits = pose.PageLimits(upload_mb * 1_000_000, megapixels * 1_000_000)
    pose.serve_page(models, limits, host, port, lambda address: print(f"{address} (Ctrl-C ends it)", flush=True))
