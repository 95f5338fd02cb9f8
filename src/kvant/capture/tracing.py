"""What torch does otherwise while a model is exported, so that its sizes stay free and the export ends in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kvant.errors import CaptureError

# Numbers, symbols and operators of a size, beyond which it is not followed: of six published networks whose sizes stay
# free to the end the longest has 50, of others it has over a thousand.
_LONGEST = 128


@contextmanager
def traced() -> Iterator[None]:
    """torch as it is while ``torch.export`` runs."""
    with _slow_attention(), _quick_quotients(), _Sizes():
        yield


class _Sizes(TorchFunctionMode):
    """Keeps sizes free where torch fixes them for no need, and stops where they become too long to be of use."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        # torch.max_pool1d fixes the length that it sees in an export; max_pool2d does not.
        pools = func in (torch.max_pool1d, F.max_pool1d) and not given.get("return_indices")
        result = _max_pool1d(*args, **given) if pools else func(*args, **given)
        if isinstance(result, Tensor):
            _check_sizes(result)
        return result


def _check_sizes(tensor: Tensor) -> None:
    """Stop an export whose sizes grow beyond measure.

    Padding that depends on the size, layer after layer, as in TensorFlow's EfficientNets and in Swin, makes each size
    twice as long as the one before. torch would think about them for minutes, for a graph that is right at the
    example's size only.
    """
    sizes: Sequence[Any] = tensor.shape
    for size in sizes:
        terms = sympy.preorder_traversal(size.node.expr) if isinstance(size, torch.SymInt) else ()
        if any(count > _LONGEST for count, _ in enumerate(terms, 1)):
            raise CaptureError("the sizes of the model's activations depend on its input's in too intricate a way")


def _max_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    kernel, step, pad, gap = (_only(value) for value in (kernel_size, stride or kernel_size, padding, dilation))
    pooled = torch.max_pool2d(input.unsqueeze(-2), (1, kernel), (1, step), (0, pad), (1, gap), ceil_mode)
    return pooled.squeeze(-2)


def _only(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[0]


@contextmanager
def _slow_attention() -> Iterator[None]:
    """With the fused inference path of nn.MultiheadAttention switched off: it is one opaque operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _quick_quotients() -> Iterator[None]:
    """With sympy.simplify cut down to what torch needs of it, the common factor of a quotient of sizes cancelled.

    It looks for trigonometric and hypergeometric forms, too, which takes minutes for the sizes of windowed attention.
    """
    simplify = sympy.simplify
    sympy.simplify = _cancelled
    try:
        yield
    finally:
        sympy.simplify = simplify


def _cancelled(quotient: Any) -> sympy.Expr:
    """``(a * x + a * y) / a`` as ``x + y``; factors that are numbers sympy cancels by itself."""
    quotient = sympy.sympify(quotient)
    divides = quotient.is_Mul and any(part.is_Pow and part.exp.is_negative for part in quotient.args)
    return sympy.expand_mul(quotient, deep=False) if divides else quotient
