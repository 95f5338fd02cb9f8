"""Linear layers and matrix products."""

from __future__ import annotations

from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, Size, is_activation, need_activation
from kvant.capture.operators.elementwise import binary
from kvant.capture.operators.shape import reshape_to, swap
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops


@handles("linear.default")
def linear(t: Builder, x: Operand, weight: Operand, bias: Operand | None) -> Operand:
    x = need_activation(x, "the linear layer's input")
    if isinstance(weight, Tensor) and weight.dim() == 2 and (bias is None or isinstance(bias, Tensor)):
        return t.emit(ops.Linear(), x, weight, *([] if bias is None else [bias]))
    transposed = swap(t, weight, -1, -2)
    product = matmul(t, x, transposed)
    return product if bias is None else binary(t, "add", product, bias)


@handles("matmul.default", "bmm.default", "mm.default")
def matmul(t: Builder, a: Operand, mat2: Operand | None = None, other: Operand | None = None) -> Operand:
    b = other if mat2 is None else mat2
    if b is None:
        raise UnsupportedError("a product of one matrix")
    if _rank(a) == 0 or _rank(b) == 0 or (_rank(a) == 1 and _rank(b) == 1):
        raise UnsupportedError("a product of two vectors")
    if _rank(a) == 1:
        row = reshape_to(t, a, (1, *a.shape))
        return _squeeze(t, _product(t, row, b, (*b.shape[:-2], 1, b.shape[-1])), -2)
    if _rank(b) == 1:
        column = reshape_to(t, b, (*b.shape, 1))
        return _squeeze(t, _product(t, a, column, (*a.shape[:-1], 1)), -1)
    return _product(t, a, b, t.shape)


def _product(t: Builder, a: Operand, b: Operand, shape: tuple[Size, ...]) -> Activation:
    if is_activation(a) and isinstance(b, Tensor) and b.dim() == 2:
        return t.emit(ops.Linear(), a, b.detach().t().contiguous(), shape=shape)
    return t.emit(ops.MatMul(), a, b, shape=shape)


def _rank(value: Operand) -> int:
    return len(value.shape)


def _squeeze(t: Builder, x: Activation, axis: int) -> Operand:
    sizes = list(x.shape)
    del sizes[axis]
    return reshape_to(t, x, sizes)


@handles("addmm.default", "baddbmm.default")
def addmm(
    t: Builder,
    bias: Operand,
    mat1: Operand | None = None,
    mat2: Operand | None = None,
    batch1: Operand | None = None,
    batch2: Operand | None = None,
    beta: float = 1,
    alpha: float = 1,
) -> Operand:
    a, b = (batch1, batch2) if mat1 is None else (mat1, mat2)
    if a is None or b is None:
        raise UnsupportedError("a product of one matrix")
    if is_activation(a) and isinstance(b, Tensor) and b.dim() == 2 and isinstance(bias, Tensor) and bias.dim() == 1:
        return t.emit(ops.Linear(), a, (b * alpha).t().contiguous(), (bias * beta).expand(b.shape[1]).contiguous())
    product = _product(t, a, b, t.shape)
    scaled = product if alpha == 1 else binary(t, "mul", product, alpha)
    if beta == 0:
        return scaled
    return binary(t, "add", scaled, bias if beta == 1 else binary(t, "mul", bias, beta))
