"""The entry point: a trained module and example inputs in, a float graph out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kvant.capture.export import LEVELS, Dynamic, export, levels
from kvant.capture.model import check_model
from kvant.capture.structure import flatten_arguments
from kvant.capture.translate import translate
from kvant.errors import CaptureError, UnsupportedOperatorError
from kvant.graph import Graph, validate


def capture(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, dynamic: Dynamic = "auto"
) -> Graph:
    """The float graph of ``model``, batch norm not yet folded (``kvant.capture.prepare`` does that).

    Args:
        model: in evaluation mode, float32, on the CPU. It is not changed.
        args: example positional arguments: tensors (float32 or integers), or tuples, lists and dicts of them. Anything
            else (numbers, flags, None) becomes a fixed part of the graph.
        kwargs: example keyword arguments, likewise.
        dynamic: which input sizes may differ from the example: "auto" as many as the model allows (batch, height,
            width, length), "batch" the first axis only, "none". Sizes that the model fixes are ints in the graph's
            inputs, the others symbols.

    Raises:
        CaptureError: torch.export cannot trace the model; the message has its reason and the line.
        UnsupportedOperatorError: it uses operators that kvant does not know; all of them are listed.
        ModelStateError: it is in training mode, on another device, or has weights that are not finite float32.

    >>> graph = capture(nn.Conv2d(3, 8, 3).eval(), [torch.zeros(1, 3, 32, 32)])
    >>> graph.inputs[0].shape
    (('batch',), 3, ('height',), ('width',))
    """
    if dynamic not in LEVELS:
        raise CaptureError(f"dynamic={dynamic!r} is unknown, expected one of {', '.join(map(repr, LEVELS))}")
    model = check_model(model)
    arguments = flatten_arguments(model, args, kwargs or {})
    first: CaptureError | None = None
    for level in levels(arguments, dynamic):
        try:
            graph = translate(export(model, arguments, level), arguments)
        except UnsupportedOperatorError:
            raise
        except CaptureError as error:
            # The reason with fixed sizes is the one that the user must know: it is raised last.
            first = error
            continue
        validate(graph)
        return graph
    raise first if first is not None else CaptureError("nothing was tried")
