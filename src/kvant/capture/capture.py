"""The entry point: a trained module and example inputs in, a float graph out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kvant.capture.agree import agrees, takes_other_sizes
from kvant.capture.export import Dynamic, Level, export, known_dynamic, levels
from kvant.capture.model import check_model
from kvant.capture.structure import Arguments, flatten_arguments
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
    known_dynamic(dynamic)
    model = check_model(model)
    arguments = flatten_arguments(model, args, kwargs or {})
    *tries, last = levels(arguments, dynamic)
    refused: UnsupportedOperatorError | None = None
    for level in tries:
        try:
            graph = _capture(model, arguments, level)
        except UnsupportedOperatorError as error:
            # What is computed from sizes alone is a constant where these are fixed.
            refused = error
            break
        except CaptureError:
            # Fewer dynamic sizes may do; if not even fixed sizes do, that reason is the one to tell.
            continue
        if takes_other_sizes(graph) and agrees(model, arguments, graph):
            return graph
    try:
        return _capture(model, arguments, last)
    except UnsupportedOperatorError as error:
        raise refused or error from None


def _capture(model: nn.Module, arguments: Arguments, level: Level) -> Graph:
    graph = translate(export(model, arguments, level), arguments)
    validate(graph)
    return graph
