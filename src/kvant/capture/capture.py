"""The entry point: a trained module and example inputs in, a float graph out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from kvant.capture.agree import agrees
from kvant.capture.export import Dynamic, Level, export, known_dynamic, levels
from kvant.capture.model import check_model
from kvant.capture.structure import Arguments, flatten_arguments
from kvant.capture.translate import translate
from kvant.errors import CaptureError, ShapeError, UnsupportedOperatorError
from kvant.graph import Graph, evaluate, infer_shapes, validate


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
    for level in tries:
        try:
            graph = _capture(model, arguments, level)
        except UnsupportedOperatorError:
            raise
        except CaptureError:
            # Fewer dynamic sizes may do; if not even fixed sizes do, that reason is the one to tell.
            continue
        if _takes_other_sizes(graph) and agrees(model, arguments, graph):
            return graph
    return _capture(model, arguments, last)


def _capture(model: nn.Module, arguments: Arguments, level: Level) -> Graph:
    graph = translate(export(model, arguments, level), arguments)
    validate(graph)
    return graph


# Other sizes that are tried, from the example's: torch sees no difference between a size that is free and one that
# some equation ties to the example's, as where a flattened image meets a linear layer.
_OTHER_SIZES: tuple[Callable[[int], int], ...] = (
    lambda size: 2 * size, lambda size: size + 32, lambda size: size + 1, lambda size: max(size - 1, 1),
)  # fmt: skip


def _takes_other_sizes(graph: Graph) -> bool:
    """Whether shapes fit together at another size, if any but the batch is said to be free."""
    free = [symbol for symbol in graph.example if not symbol.startswith("batch")]
    return not free or any(_fits(graph, free, change) for change in _OTHER_SIZES)


def _fits(graph: Graph, free: Sequence[str], change: Callable[[int], int]) -> bool:
    sizes = graph.example | {symbol: change(graph.example[symbol]) for symbol in free}
    try:
        infer_shapes(graph, {entry.name: [evaluate(dim, sizes) for dim in entry.shape] for entry in graph.inputs})
    except ShapeError:
        return False
    return True
