"""Whether a captured graph does what the model does at other sizes than the example's.

torch.export follows the one way through ``forward`` that the example takes. Where the code asks for sizes
(``if x.shape[2] > 100``, padding to a multiple of 8), another size may take another way; nothing in the exported graph
tells. So the model itself is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from kvant.capture.execute import Executor
from kvant.capture.model import unchanged
from kvant.capture.structure import Arguments, flatten_outputs
from kvant.errors import InputError, ShapeError
from kvant.graph import Graph, evaluate, infer_shapes

# Other sizes by the number of the symbol (height and width differ) and the example's size; smaller ones are cheap.
_CHANGES: tuple[Callable[[int, int], int], ...] = (
    lambda number, size: max(size // 2, 1),
    lambda number, size: max(size // 2, 1) + 5 - 2 * (number % 2),
    lambda number, size: max(size // (2 if number % 2 else 4), 1),
    lambda number, size: max(size // (4 if number % 2 else 2), 1),
    lambda number, size: size + 9 - 2 * (number % 2),
)
# More of them, for which only shapes are inferred.
_LARGER: tuple[Callable[[int, int], int], ...] = (
    lambda number, size: 2 * size, lambda number, size: size + 32, lambda number, size: size + 1,
)  # fmt: skip


def _unchanged(number: int, size: int) -> int:
    return size


# Differences from the order of float operations stay far below; another way through the code does not.
_TOLERANCE = 1e-2


def takes_other_sizes(graph: Graph) -> bool:
    """Whether shapes fit together at another size, if any but the batch is said to be free.

    torch sees no difference between a size that is free and one that some equation ties to the example's, as where a
    flattened image meets a linear layer.
    """
    shapes = list(_other_shapes(graph, (*_CHANGES, *_LARGER)))
    return not shapes or any(_fits(graph, each) for each in shapes)


def agrees(model: nn.Module, arguments: Arguments, graph: Graph) -> bool:
    """Whether ``graph`` and ``model`` give the same outputs at sizes that both take."""
    executor = Executor(graph)
    for shapes in _other_shapes(graph, _CHANGES):
        tensors = [_resized(tensor, shape) for tensor, shape in zip(arguments.tensors, shapes, strict=True)]
        try:
            got = executor.run(tensors)
        except (ShapeError, InputError):
            continue
        wanted = _outputs(model, arguments, tensors)
        if wanted is not None and not _same(wanted, got):
            return False
    return True


def _other_shapes(graph: Graph, changes: Iterable[Callable[[int, int], int]]) -> Iterator[list[list[int]]]:
    """Shapes of the inputs, in order, after each change; the example's own if no size but the batch is free.

    A graph is traced with two samples where the example has one, and ``squeeze()`` makes something else of one.
    """
    free = [symbol for symbol in graph.example if not symbol.startswith("batch")]
    for change in changes if free else (_unchanged,):
        sizes = graph.example | {symbol: change(at, graph.example[symbol]) for at, symbol in enumerate(free)}
        yield [[evaluate(dim, sizes) for dim in entry.shape] for entry in graph.inputs]


def _fits(graph: Graph, shapes: Sequence[Sequence[int]]) -> bool:
    try:
        infer_shapes(graph, {entry.name: shape for entry, shape in zip(graph.inputs, shapes, strict=True)})
    except ShapeError:
        return False
    return True


def _resized(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor`` cut or repeated along each axis."""
    for axis, size in enumerate(shape):
        tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return tensor


def _outputs(model: nn.Module, arguments: Arguments, tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """What the model returns, or None where it refuses these sizes."""
    args, kwargs = arguments.rebuild([tensor.clone() for tensor in tensors])
    try:
        with unchanged(model), torch.inference_mode():
            return flatten_outputs(model(*args, **kwargs))[0]
    except Exception:  # a forward may refuse a size in any way it likes
        return None


def _same(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in got]:
        return False
    return all(_close(one, two) for one, two in zip(wanted, got, strict=True))


def _close(wanted: Tensor, got: Tensor) -> bool:
    if not wanted.is_floating_point():
        # Near ties between floats may decide an integer differently.
        return wanted.numel() == 0 or float((wanted != got).float().mean()) < 0.1
    if wanted.numel() == 0:
        return True
    largest = wanted.abs().nan_to_num(0.0).max().clamp_min(1e-6)
    return bool((wanted - got).abs().nan_to_num(0.0).max() <= _TOLERANCE * largest)
