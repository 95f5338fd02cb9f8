"""Running ``torch.export`` with as many dynamic dimensions as the model allows."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kvant.capture.model import unchanged
from kvant.capture.structure import Arguments, flatten_outputs
from kvant.capture.tracing import traced
from kvant.errors import CaptureError
from kvant.graph import Structure

Dynamic = Literal["auto", "batch", "none"]
Level = Literal["sizes", "length", "batch", "none"]
# What is tried, one after the other, until an export succeeds.
LEVELS: dict[Dynamic, tuple[Level, ...]] = {
    "auto": ("sizes", "length", "batch", "none"),
    "batch": ("batch", "none"),
    "none": ("none",),
}
# Attributes under which the user's model hangs in the module that is exported.
WRAPPED = "model"


@dataclass(frozen=True)
class Export:
    """One successful export.

    Attributes:
        program: its inputs are the flat tensors of the arguments, its outputs the flat tensors of the model's output.
        structure: how the outputs are nested.
        level: which dimensions were allowed to be dynamic.
    """

    program: ExportedProgram
    structure: Structure
    level: Level


class _Flat(nn.Module):
    """The user's model with tensors in and tensors out, so that names and nesting are kvant's business."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self.add_module(WRAPPED, model)
        self._arguments = arguments
        self.nesting = _Nesting()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self._arguments.rebuild(tensors)
        # Non-strict tracing runs this very code, so the nesting of the outputs can be noted on the way.
        outputs, self.nesting.structure = flatten_outputs(self.get_submodule(WRAPPED)(*args, **kwargs))
        return tuple(outputs)


class _Nesting:
    """Holds the structure of the outputs: torch.export undoes what is assigned to a module's own attributes."""

    structure: Structure = 0


def export(model: nn.Module, arguments: Arguments, level: Level) -> Export:
    """Export ``model`` once.

    Raises:
        CaptureError: torch cannot export it at this level; the message holds torch's reason and the user's line.
    """
    flat = _Flat(model, arguments)
    flat.training = False
    with torch.inference_mode(False), torch.no_grad():
        tensors = _traced_tensors(arguments.tensors, level)
    shapes = None if level == "none" else (tuple(dynamic_dims(tensor, level) for tensor in tensors),)
    try:
        with _quiet(), unchanged(model), traced(), torch.inference_mode(False), torch.enable_grad():
            program = torch.export.export(flat, tensors, dynamic_shapes=shapes, strict=False)
    except CaptureError:
        raise
    except Exception as error:  # torch.export raises whatever torch, sympy or the user's forward raise
        raise CaptureError(_explain(model, error)) from error
    return Export(program, flat.nesting.structure, level)


def _traced_tensors(tensors: Sequence[Tensor], level: Level) -> tuple[Tensor, ...]:
    """The example inputs; with batch 2 where all have batch 1, because torch takes a size of 1 for fixed."""
    single = all(tensor.dim() >= 1 and tensor.shape[0] == 1 for tensor in tensors)
    repeated = 1 if level == "none" or not single else 2
    # Copies, because torch.export cannot take tensors that were made in inference mode.
    return tuple(tensor.repeat(*[repeated, *[1] * tensor.dim()][: tensor.dim()]) for tensor in tensors)


def channel_axis(tensor: Tensor) -> int:
    """The axis of an input's channels: 1, or the last one of pictures (N, H, W, C), as cameras give them."""
    last = tensor.dim() == 4 and tensor.shape[-1] in (1, 3, 4) and tensor.shape[1] > 4
    return 3 if last else 1


def dynamic_dims(tensor: Tensor, level: Level) -> dict[int, Any]:
    """The dimensions of an input that may be dynamic, by what is to be tried.

    Level "sizes" is all but the channels of images; "length" is batch and length of (N, length, features), the
    features fixed; "batch" is the first dimension alone.
    """
    rank = tensor.dim()
    axes = {
        "sizes": [axis for axis in range(rank) if axis != channel_axis(tensor) or rank <= 3],
        "length": [0, 1] if 2 <= rank <= 3 else [0],
        "batch": [0],
        "none": [],
    }
    wanted = [axis for axis in axes[level] if axis < rank and tensor.shape[axis] > 1]
    return dict.fromkeys(wanted, Dim.AUTO)


def known_dynamic(dynamic: str) -> None:
    """Raise CaptureError unless ``dynamic`` is one of the choices."""
    if dynamic not in LEVELS:
        raise CaptureError(f"dynamic={dynamic!r} is unknown, expected one of {', '.join(map(repr, LEVELS))}")


def levels(arguments: Arguments, dynamic: Dynamic) -> list[Level]:
    """The levels worth trying, each with fewer dynamic dimensions than the one before."""
    kept: dict[str, Level] = {}
    for level in LEVELS[dynamic]:
        traced = _traced_tensors(arguments.tensors, level)
        kept.setdefault(str([dynamic_dims(tensor, level) for tensor in traced]), level)
    return list(kept.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings and log lines: what matters of them is in kvant's errors."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # A failed export prints its whole graph on stderr, past the logger.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def decompose(program: ExportedProgram, operators: Sequence[Any]) -> ExportedProgram:
    """``program`` without in-place operators, and with ``operators`` written in terms of simpler ones."""
    with _quiet(), torch.inference_mode(False):
        table = decompositions()
        # torch would make the program check that its example fits, and torch 2.9 cannot trace such checks of masks.
        program.example_inputs = None
        simpler: ExportedProgram = program.run_decompositions({operator: table[operator] for operator in operators})
        return simpler


def decompositions() -> Any:
    """torch's own decomposition of each operator that has one."""
    return torch.export.default_decompositions()


def _explain(model: nn.Module, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "data-dependent" in reason:
        reason = f"{reason} (what depends on data, such as the decoding of heat maps, must stay outside the model)"
    if not isinstance(error, RuntimeError | torch._dynamo.exc.UserError):
        reason = f"{type(error).__name__}: {reason}"
    return f"torch.export cannot trace {type(model).__name__}{_user_line(error)}: {reason}"


def _user_line(error: Exception) -> str:
    """Where in the user's code it happened: the innermost frame that is neither torch's nor kvant's."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(ours) and "sympy" not in frame.filename and Path(frame.filename).is_file():
            return f", at {Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}"
    return ""
