"""Embeddings and other selections by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, Size, need_activation, need_constant
from kvant.capture.operators.integers import integers
from kvant.capture.operators.shape import reshape_to, same_shape
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops


@handles("embedding.default")
def embedding(t: Builder, weight: Operand, indices: Operand) -> Activation:
    return t.emit(ops.Gather(0), need_constant(weight, "the embedding's weight"), int64_indices(indices, None))


def int64_indices(indices: Operand, size: object) -> Operand:
    """Indices as the graph takes them: int64, and not negative where they are constants."""
    if isinstance(indices, Activation):
        if indices.dtype != torch.int64:
            raise UnsupportedError(f"indices of type {indices.dtype}, expected int64")
        return indices
    if indices.dtype == torch.bool:
        raise UnsupportedError("selection by a mask")
    indices = indices.to(torch.int64)
    if not bool((indices < 0).any()):
        return indices
    if not isinstance(size, int):
        raise UnsupportedError("negative indices along a dynamic axis", static=True)
    return torch.where(indices < 0, indices + size, indices)


@handles("index_select.default")
def index_select(t: Builder, x: Operand, dim: int, index: Operand) -> Activation:
    axis = dim % len(x.shape)
    return t.emit(ops.Gather(axis), x, int64_indices(index, x.shape[axis]))


@handles("index.Tensor", "_unsafe_index.Tensor")
def index(t: Builder, x: Operand, indices: Sequence[Operand | None]) -> Operand:
    chosen = [(axis, entry) for axis, entry in enumerate(indices) if entry is not None]
    if len(chosen) == 1:
        axis, entry = chosen[0]
        return t.emit(ops.Gather(axis), x, int64_indices(entry, x.shape[axis]))
    return _index_grid(t, need_activation(x, "the operand"), chosen)


def _index_grid(t: Builder, x: Activation, chosen: Sequence[tuple[int, Operand]]) -> Operand:
    """Several indices that broadcast to a grid, each along its own axis, such as ``x[:, :, rows[:, None], columns]``.

    Torch puts the grid where the first of the axes was if they are neighbours; a grid is then one gather after another.
    """
    axes = [axis for axis, _ in chosen]
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise UnsupportedError("selection by indices along axes that are not neighbours")
    if any(isinstance(entry, Activation) for _, entry in chosen):
        return _index_points(t, x, axes, [entry for _, entry in chosen])
    entries = [need_constant(entry, "the index") for _, entry in chosen]
    need_grid([entry.shape for entry in entries])
    for axis, entry in zip(axes, entries, strict=True):
        x = take(t, x, axis, entry.reshape(-1))
    return x if same_shape(x.shape, t.shape) else reshape_to(t, x, t.shape)


def _index_points(t: Builder, x: Activation, axes: Sequence[int], entries: Sequence[Operand]) -> Operand:
    """Points that several indices name together: one index along their axes made one."""
    first, count = axes[0], len(axes)
    along = int64_indices(entries[0], x.shape[first])
    for axis, entry in zip(axes[1:], entries[1:], strict=True):
        size = x.fixed(axis)
        # Negative ones count from the end.
        here = integers(t, "mod", entry, size) if isinstance(entry, Activation) else int64_indices(entry, size)
        along = _add(t, _times(t, along, size), here)
    joined = x.shape[first]
    for axis in axes[1:]:
        joined = joined * x.shape[axis]
    flat = reshape_to(t, x, (*x.shape[:first], joined, *x.shape[first + count :]))
    return t.emit(ops.Gather(first), flat, along)


def _times(t: Builder, indices: Operand, factor: int) -> Operand:
    return integers(t, "mul", indices, factor) if isinstance(indices, Activation) else indices * factor


def _add(t: Builder, one: Operand, other: Operand) -> Operand:
    if isinstance(one, Activation) or isinstance(other, Activation):
        return integers(t, "add", one, other)
    return one + other


def need_grid(shapes: Sequence[Sequence[Size]]) -> None:
    """Refuse indices of these shapes if their axes of more than one entry do not lie one behind the other."""
    places = [[axis - len(shape) for axis, size in enumerate(shape) if size != 1] for shape in shapes]
    used = [place for entry in places for place in entry]
    if any(len(entry) > 1 for entry in places) or used != sorted(set(used)):
        raise UnsupportedError("selection by indices that form no grid")


def take(t: Builder, x: Activation, axis: int, vector: Tensor) -> Activation:
    """The entries of ``x`` along ``axis`` that ``vector`` names."""
    size = x.shape[axis]
    if isinstance(size, int) and torch.equal(vector, torch.arange(size)):
        return x
    shape = (*x.shape[:axis], vector.numel(), *x.shape[axis + 1 :])
    return t.emit(ops.Gather(axis), x, int64_indices(vector, size), shape=shape)
