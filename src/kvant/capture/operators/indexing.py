"""Embeddings and other selections by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, need_activation, need_constant
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops


@handles("embedding.default")
def embedding(t: Builder, weight: Operand, indices: Operand) -> Activation:
    return t.emit(ops.Gather(0), need_constant(weight, "the embedding's weight"), _indices(indices, None))


def _indices(indices: Operand, size: object) -> Operand:
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
    return t.emit(ops.Gather(axis), x, _indices(index, x.shape[axis]))


@handles("index.Tensor", "_unsafe_index.Tensor")
def index(t: Builder, x: Operand, indices: Sequence[Operand | None]) -> Operand:
    chosen = [(axis, entry) for axis, entry in enumerate(indices) if entry is not None]
    if len(chosen) == 1:
        axis, entry = chosen[0]
        return t.emit(ops.Gather(axis), x, _indices(entry, x.shape[axis]))
    return _index_grid(t, need_activation(x, "the operand"), chosen)


def _index_grid(t: Builder, x: Activation, chosen: Sequence[tuple[int, Operand]]) -> Activation:
    """Several indices that broadcast to a grid, each along its own axis, such as ``x[:, :, rows[:, None], columns]``.

    Torch puts the grid where the first of the axes was if they are neighbours; a grid is then one gather after another.
    """
    axes = [axis for axis, _ in chosen]
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise UnsupportedError("selection by indices along axes that are not neighbours")
    rank = max(len(entry.shape) for _, entry in chosen)
    for position, (axis, entry) in enumerate(chosen):
        vector = _grid_axis(need_constant(entry, "the index"), position, rank, len(chosen))
        shape = (*x.shape[:axis], vector.numel(), *x.shape[axis + 1 :])
        x = t.emit(ops.Gather(axis), x, _indices(vector, x.shape[axis]), shape=shape)
    return x


def _grid_axis(entry: Tensor, position: int, rank: int, count: int) -> Tensor:
    sizes = (1,) * (rank - entry.dim()) + tuple(entry.shape)
    if rank != count or any(size != 1 for axis, size in enumerate(sizes) if axis != position):
        raise UnsupportedError("selection by indices that form no grid")
    return entry.reshape(-1)
