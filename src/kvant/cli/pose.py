"""``kvant pose``: OpenPose networks, from pictures to a file, and from the file to skeletons."""

from __future__ import annotations

import typer

from kvant.cli.output import help_of
from kvant.cli.pose_compare import compare
from kvant.cli.pose_evaluate import evaluate
from kvant.cli.pose_quantize import quantize
from kvant.cli.pose_run import run
from kvant.cli.pose_serve import serve
from kvant.cli.pose_video import video

app = typer.Typer(help="Pose estimation with OpenPose networks.", no_args_is_help=True)
for command in (quantize, run, video, evaluate, compare, serve):
    app.command(help=help_of(command))(command)
