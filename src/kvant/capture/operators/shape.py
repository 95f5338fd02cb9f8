"""Operators that only move elements: views, permutations, slices, joins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, Size, is_activation, need_activation
from kvant.capture.operators.masks import converted
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import Dim, combine, is_symbol, ops

_TORCH_END = 2**62


@handles(
    "alias.default", "clone.default", "contiguous.default", "detach.default", "dropout.default", "lift_fresh.default",
    "feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default", "lift_fresh_copy.default",
    "native_dropout.default", "positive.default",
)  # fmt: skip
def identity(t: Builder, x: Operand, train: bool = False) -> Operand:
    if train:
        raise UnsupportedError("dropout that is active in evaluation mode")
    return x


@handles("to", "_to_copy.default", "type_as.default")
def convert(t: Builder, x: Operand, other: Operand | None = None) -> Operand:
    if isinstance(x, Tensor):
        return x.to(t.dtype)
    return x if t.dtype == x.dtype else converted(t, x, t.dtype)


def target_shape(t: Builder, sizes: Sequence[Size]) -> tuple[Dim, ...]:
    """Traced sizes as the target of a Reshape: one that is computed is left to be worked out, as -1."""
    computed = [
        axis for axis, size in enumerate(sizes) if isinstance(size, torch.SymInt) and not _plain(t, size)
    ]  # fmt: skip
    if len(computed) != 1:
        return t.dims(sizes)
    return tuple(-1 if axis == computed[0] else t.dim(size) for axis, size in enumerate(sizes))


def _plain(t: Builder, size: torch.SymInt) -> bool:
    try:
        return is_symbol(t.dim(size))
    except UnsupportedError:
        return False


def reshape_to(t: Builder, x: Operand, sizes: Sequence[Size]) -> Operand:
    """``x`` in another shape of as many elements."""
    if isinstance(x, Tensor):
        if not all(isinstance(size, int) for size in sizes):
            raise UnsupportedError("a constant whose shape depends on the input's", static=True)
        return x.reshape(tuple(sizes))
    return t.emit(ops.Reshape(target_shape(t, sizes)), x, shape=sizes)


@handles(
    "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int", "squeeze",
    "unsqueeze.default", "view_as.default", "reshape_as.default", "_reshape_alias.default", "_reshape_copy.default",
)  # fmt: skip
def reshape(t: Builder, x: Operand) -> Operand:
    x = need_activation(x, "the operand")
    return x if same_shape(x.shape, t.shape) else reshape_to(t, x, t.shape)


def same_shape(left: Sequence[Size], right: Sequence[Size]) -> bool:
    """Whether two traced shapes are known to be the same."""
    if len(left) != len(right):
        return False
    return all(
        a is b or (isinstance(a, int) and isinstance(b, int) and a == b) for a, b in zip(left, right, strict=True)
    )


def permute_to(t: Builder, x: Operand, permutation: Sequence[int]) -> Operand:
    """``x`` with axis i taken from axis ``permutation[i]``."""
    if isinstance(x, Tensor):
        return x.permute(tuple(permutation))
    if list(permutation) == list(range(x.rank)):
        return x
    shape = tuple(x.shape[axis] for axis in permutation)
    return t.emit(ops.Transpose(tuple(permutation)), x, shape=shape)


def swap(t: Builder, x: Operand, first: int, second: int) -> Operand:
    """``x`` with two axes exchanged."""
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return permute_to(t, x, order)


@handles("permute.default")
def permute(t: Builder, x: Activation, dims: Sequence[int]) -> Operand:
    return permute_to(t, x, [x.axis(axis) for axis in dims])


@handles("transpose.int", "swapaxes.default", "swapdims.default")
def transpose(
    t: Builder, x: Activation, dim0: int = 0, dim1: int = 1, axis0: int | None = None, axis1: int | None = None
) -> Operand:
    first, second = (dim0, dim1) if axis0 is None or axis1 is None else (axis0, axis1)
    return swap(t, x, x.axis(first), x.axis(second))


@handles("t.default", "numpy_T.default", "mT.default")
def matrix_transpose(t: Builder, x: Activation) -> Operand:
    return x if x.rank < 2 else swap(t, x, -1, -2)


@handles("movedim.intlist", "movedim.int", "moveaxis.intlist", "moveaxis.int")
def movedim(t: Builder, x: Activation, source: int | Sequence[int], destination: int | Sequence[int]) -> Operand:
    sources = [x.axis(axis) for axis in ([source] if isinstance(source, int) else source)]
    targets = [x.axis(axis) for axis in ([destination] if isinstance(destination, int) else destination)]
    rest = iter(axis for axis in range(x.rank) if axis not in sources)
    moved = dict(zip(targets, sources, strict=True))
    return permute_to(t, x, [moved[axis] if axis in moved else next(rest) for axis in range(x.rank)])


@handles("expand.default", "expand_as.default", "broadcast_to.default")
def expand(t: Builder, x: Operand) -> Operand:
    if same_shape(x.shape, t.shape):
        return x
    sizes = t.dims(t.shape)
    if isinstance(x, Tensor) and all(isinstance(size, int) for size in sizes):
        return x.expand(sizes)  # type: ignore[arg-type]
    if isinstance(x, Tensor) and 0 in sizes:
        # Of no elements, such as tokens that a model may have and has not: `cat` leaves them out, whatever their shape.
        return x.new_zeros([size if isinstance(size, int) else 1 for size in sizes])
    if isinstance(x, Tensor) and x.dtype == torch.bool:
        return x  # what reads masks broadcasts them itself
    return _spread(t, x, t.shape)


def _spread(t: Builder, x: Operand, shape: Sequence[Size]) -> Activation:
    result = t.emit(ops.Expand(t.dims(shape)), x, shape=shape)
    if isinstance(x, Activation) and x.dtype == torch.int64 and x.rank == len(shape):
        t.spread[result.name] = t.spread.get(x.name, x)
    return result


@handles("full.default", "new_full.default", "full_like.default")
def full(t: Builder, first: object, fill_value: float) -> Operand:
    constant = torch.tensor(fill_value, dtype=t.dtype)
    if t.dtype in (torch.float32, torch.bool) or all(isinstance(size, int) for size in t.shape):
        return expand(t, constant)
    if t.dtype not in (torch.int64, torch.int32):
        raise UnsupportedError(f"a constant of type {t.dtype} whose shape depends on the input's", static=True)
    filled = t.emit(ops.Expand(t.dims(t.shape)), constant.to(torch.int64))
    if fill_value in (0, 1):
        t.masks.add(filled.name)
    return filled


@handles(
    "zeros.default", "new_zeros.default", "zeros_like.default", "empty.memory_format", "new_empty.default",
    "empty_like.default",
)  # fmt: skip
def zeros(t: Builder, first: object) -> Operand:
    return full(t, first, 0.0)


@handles("ones.default", "new_ones.default", "ones_like.default")
def ones(t: Builder, first: object) -> Operand:
    return full(t, first, 1.0)


@handles("arange", "linspace", "eye")
def arange(t: Builder, first: object) -> Operand:
    raise UnsupportedError("a constant whose shape depends on the input's", static=True)


@handles("copy.default")
def copy(t: Builder, x: Operand, src: Operand) -> Operand:
    """``x.copy_(src)``: what ``x`` held is gone."""
    if src.dtype != x.dtype:
        raise UnsupportedError(f"an assignment of {src.dtype} to {x.dtype}")
    return expand(t, src)


@handles("repeat.default", "tile.default")
def repeat(
    t: Builder, x: Operand, repeats: Sequence[Size] | None = None, dims: Sequence[Size] | None = None
) -> Operand:
    given = repeats if repeats is not None else dims or ()
    rank = len(x.shape)
    counts: list[Size] = [*[1] * (rank - len(given)), *given]
    value = reshape_to(t, x, (*[1] * (len(counts) - rank), *x.shape)) if len(counts) > rank else x
    for axis, count in enumerate(counts):
        value = _repeat_axis(t, value, axis, count)
    return value


def _repeat_axis(t: Builder, x: Operand, axis: int, count: Size) -> Operand:
    if isinstance(count, int) and count == 1:
        return x
    shape = (*x.shape[:axis], x.shape[axis] * count, *x.shape[axis + 1 :])
    if isinstance(x.shape[axis], int) and x.shape[axis] == 1:
        return _spread(t, x, shape)
    if isinstance(count, int):
        return t.emit(ops.Concat(axis), *[x] * count, shape=shape)
    apart = reshape_to(t, x, (*x.shape[:axis], 1, *x.shape[axis:]))
    return reshape_to(t, _spread(t, apart, (*x.shape[:axis], count, *x.shape[axis:])), shape)


@handles("repeat_interleave.self_int")
def repeat_interleave(t: Builder, x: Activation, repeats: Size, dim: int | None) -> Operand:
    if dim is None:
        raise UnsupportedError("repetition without an axis")
    axis = x.axis(dim) + 1
    spread = need_activation(reshape_to(t, x, (*x.shape[:axis], 1, *x.shape[axis:])), "the operand")
    return reshape_to(t, _repeat_axis(t, spread, axis, repeats), t.shape)


def slice_axis(
    t: Builder, x: Operand, axis: int, start: Dim, stop: Dim | None, size: Size, step: int = 1
) -> Activation:
    """Part of ``x`` along ``axis``; ``size`` is the traced size of the result."""
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    return t.emit(ops.Slice(axis, start, stop, step), x, shape=shape)


def _bound(t: Builder, value: Size | None) -> Dim | None:
    return None if value is None or (isinstance(value, int) and value >= _TORCH_END) else t.dim(value)


@handles("slice.Tensor")
def slice_tensor(t: Builder, x: Operand, dim: int, start: Size | None, end: Size | None, step: int) -> Operand:
    axis = dim % len(x.shape)
    first, last = _bound(t, start) or 0, _bound(t, end)
    if (first == 0 and last is None and step == 1) or _covers(x.shape[axis], first, last, step):
        return x
    if isinstance(first, int) and (last is None or isinstance(last, int)):
        x = _before(t, x, axis, slice(first, last, step))
    return slice_axis(t, x, axis, first, last, t.shape[axis], step)


def _covers(size: Size, first: Dim, last: Dim | None, step: int) -> bool:
    whole = isinstance(size, int) and isinstance(last, int) and last >= size
    return first == 0 and step == 1 and whole


@handles("narrow.default")
def narrow(t: Builder, x: Activation, dim: int, start: Size, length: Size) -> Operand:
    return slice_axis(t, x, x.axis(dim), t.dim(start), combine("+", t.dim(start), t.dim(length)), length)


@handles("select.int")
def select(t: Builder, x: Activation, dim: int, index: Size) -> Operand:
    axis = x.axis(dim)
    first = t.dim(index)
    # The slice -1:0 would be empty, -1: is the last element.
    last = None if first == -1 else combine("+", first, 1)
    return reshape_to(t, slice_axis(t, x, axis, first, last, 1), t.shape)


@handles("unbind.int")
def unbind(t: Builder, x: Activation, dim: int) -> list[Operand]:
    axis = x.axis(dim)
    parts = [slice_axis(t, x, axis, index, index + 1, 1) for index in range(x.fixed(axis))]
    return [reshape_to(t, part, shape) for part, shape in zip(parts, t.shapes, strict=True)]


@handles("split", "split_with_sizes", "chunk.default", "tensor_split.sections", "unsafe_chunk.default", "unsafe_split")
def split(t: Builder, x: Activation, dim: int) -> list[Operand]:
    axis = x.axis(dim)
    if len(t.shapes) == 1:
        return [x]
    parts: list[Operand] = []
    start: Dim = 0
    for shape in t.shapes:
        stop = combine("+", start, t.dim(shape[axis]))
        last = len(parts) == len(t.shapes) - 1
        parts.append(slice_axis(t, x, axis, start, None if last else stop, shape[axis]))
        start = stop
    return parts


@handles("cat.default", "concat.default", "concatenate.default")
def cat(t: Builder, tensors: Sequence[Operand], dim: int) -> Operand:
    # Among them the empty vector that torch lets take part in any cat.
    parts = [part for part in tensors if not (isinstance(part, Tensor) and part.numel() == 0)]
    if len(parts) == 1:
        return parts[0]
    if t.dtype == torch.float32:
        parts = [part.float() if isinstance(part, Tensor) else part for part in parts]
    return t.emit(ops.Concat(dim % len(t.shape)), *parts)


@handles("stack.default")
def stack(t: Builder, tensors: Sequence[Operand], dim: int) -> Operand:
    axis = dim % len(t.shape)
    parts = [reshape_to(t, part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in tensors]
    return parts[0] if len(parts) == 1 else t.emit(ops.Concat(axis), *parts)


@handles("roll.default")
def roll(t: Builder, x: Activation, shifts: Sequence[Size], dims: Sequence[int]) -> Operand:
    if not dims:
        raise UnsupportedError("roll without axes")
    for shift, dim in zip(shifts, dims, strict=True):
        x = _roll_axis(t, x, x.axis(dim), shift)
    return x


def _roll_axis(t: Builder, x: Activation, axis: int, shift: Size) -> Activation:
    size = x.shape[axis]
    if isinstance(size, int) and isinstance(shift, int):
        shift = shift % size
        if shift == 0:
            return x
    # A positive shift brings the last elements to the front: Python's negative bounds need no size for that.
    cut = combine("-", 0, t.dim(shift))
    tail = slice_axis(t, x, axis, cut, None, shift if isinstance(shift, int) and shift > 0 else size)
    head = slice_axis(t, x, axis, 0, cut, size)
    return t.emit(ops.Concat(axis), tail, head, shape=x.shape)


@handles("pixel_shuffle.default")
def pixel_shuffle(t: Builder, x: Activation, upscale_factor: int) -> Operand:
    factor, rank = upscale_factor, x.rank
    *lead, channels, height, width = x.shape
    if not isinstance(channels, int):
        raise UnsupportedError("a dynamic number of channels", static=True)
    split = reshape_to(t, x, (*lead, channels // factor**2, factor, factor, height, width))
    order = [*range(rank - 3), *(rank - 3 + axis for axis in (0, 3, 1, 4, 2))]
    return reshape_to(t, permute_to(t, split, order), t.shape)


@handles("pixel_unshuffle.default")
def pixel_unshuffle(t: Builder, x: Activation, downscale_factor: int) -> Operand:
    factor, rank = downscale_factor, x.rank
    *_, height, width = t.shape
    split = reshape_to(t, x, (*x.shape[:-2], height, factor, width, factor))
    order = [*range(rank - 3), *(rank - 3 + axis for axis in (0, 2, 4, 1, 3))]
    return reshape_to(t, permute_to(t, split, order), t.shape)


@handles("channel_shuffle.default", "native_channel_shuffle.default")
def channel_shuffle(t: Builder, x: Activation, groups: int) -> Operand:
    batch, channels, *rest = x.shape
    if not isinstance(channels, int):
        raise UnsupportedError("a dynamic number of channels", static=True)
    split = reshape_to(t, x, (batch, groups, channels // groups, *rest))
    return reshape_to(t, swap(t, split, 1, 2), t.shape)


@handles("slice_scatter.default")
def slice_scatter(
    t: Builder, x: Operand, src: Operand, dim: int, start: Size | None, end: Size | None, step: int
) -> Operand:
    axis = dim % len(x.shape)
    if step != 1:
        return _overwrite_every(t, x, src, axis, slice(start, end, step))
    first, last = _bound(t, start) or 0, _bound(t, end)
    return _overwrite(t, x, src, axis, first, last)


@handles("select_scatter.default")
def select_scatter(t: Builder, x: Operand, src: Operand, dim: int, index: Size) -> Operand:
    axis = dim % len(x.shape)
    first = t.dim(index)
    part = reshape_to(t, src, (*src.shape[:axis], 1, *src.shape[axis:]))
    return _overwrite(t, x, part, axis, first, None if first == -1 else combine("+", first, 1))


def _overwrite(t: Builder, x: Operand, part: Operand, axis: int, first: Dim, last: Dim | None) -> Operand:
    """``x`` with ``part`` in place of ``first:last`` along ``axis``: what is before, the part, what is behind."""
    if not (isinstance(first, int) and (last is None or isinstance(last, int))):
        raise UnsupportedError("an assignment to a range that depends on the input's size", static=True)
    pieces = [part]
    if first != 0:
        pieces.insert(0, _piece(t, x, axis, 0, first))
    size = x.shape[axis]
    if last is not None and not (isinstance(size, int) and last >= size):
        pieces.append(_piece(t, x, axis, last, None))
    return part if len(pieces) == 1 else t.emit(ops.Concat(axis), *pieces)


def _overwrite_every(t: Builder, x: Operand, part: Operand, axis: int, places: slice) -> Operand:
    """``x`` with ``part`` in every n-th place along ``axis``: of both, side by side, what counts in each place."""
    size = x.shape[axis]
    if not isinstance(size, int):
        raise UnsupportedError("an assignment to every n-th element along a size that is free", static=True)
    taken = torch.arange(size)
    taken[places] = size + torch.arange(len(taken[places]))
    both = (*x.shape[:axis], size + part.shape[axis], *x.shape[axis + 1 :])
    result = t.emit(ops.Gather(axis), t.emit(ops.Concat(axis), x, part, shape=both), taken)
    t.overwritten[result.name] = (x, axis, taken >= size)
    return result


def _before(t: Builder, x: Operand, axis: int, places: slice) -> Operand:
    """What ``places`` of ``x`` were read from, where assignments to every n-th element left them alone.

    Code that decodes key points overwrites one kind of numbers after the other, and reads others in between: these
    need not share the scale of what was written.
    """
    while is_activation(x) and x.name in t.overwritten:
        before, along, written = t.overwritten[x.name]
        if along != axis or bool(written[places].any()):
            break
        x = before
    return x


def _piece(t: Builder, x: Operand, axis: int, start: int, stop: int | None) -> Operand:
    if is_activation(x):
        return slice_axis(t, x, axis, start, stop, x.shape[axis])
    if isinstance(x, Tensor):
        return x[(slice(None),) * axis + (slice(start, stop),)]
    raise UnsupportedError("an assignment to something that is no tensor")


@handles("flip.default")
def flip(t: Builder, x: Activation, dims: Sequence[int]) -> Operand:
    for dim in dims:
        axis = x.axis(dim)
        indices = torch.arange(x.fixed(axis) - 1, -1, -1)
        x = t.emit(ops.Gather(axis), x, indices, shape=x.shape)
    return x
