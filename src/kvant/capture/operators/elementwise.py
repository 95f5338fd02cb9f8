"""Functions of single elements, and element-wise arithmetic of two tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kvant.capture.builder import (
    MASKED,
    Activation,
    Builder,
    Operand,
    is_activation,
    need_activation,
    need_constant,
    to_numpy_safe,
)
from kvant.capture.operators.integers import are_integers, broadcast, chosen, integers
from kvant.capture.operators.masks import as_float, both, either, invert
from kvant.capture.registry import Handler, UnsupportedError, handles
from kvant.graph import PRELU, ops
from kvant.graph.ops import BinaryFunction, Step

Scalar = float | int | bool
INFINITY = math.inf


# The same functions of integers.
_OF_INTEGERS: dict[str, Callable[[Builder, Activation], Activation]] = {
    "neg.default": lambda t, x: integers(t, "sub", 0, x),
    "abs.default": lambda t, x: integers(t, "max", x, integers(t, "sub", 0, x)),
    "sign.default": lambda t, x: integers(t, "max", integers(t, "min", x, 1), -1),
}


def _register(operator: str, *program: Step) -> None:
    of_integers = _OF_INTEGERS.get(operator)

    def handler(t: Builder, x: Operand) -> Activation:
        x = need_activation(x, "the operand")
        if of_integers is not None and are_integers(t, x):
            return of_integers(t, x)
        return t.pointwise(x, *program)

    handles(operator)(handler)


for _name in (
    "sigmoid", "tanh", "silu", "mish", "hardswish", "hardsigmoid", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt",
    "reciprocal", "square", "abs", "neg", "sign", "floor", "ceil", "trunc", "sin", "cos", "erf",
):  # fmt: skip
    _register(f"{_name}.default", Step(_name))
_register("relu.default", Step("clamp", 0.0, INFINITY))
_register("relu6.default", Step("clamp", 0.0, 6.0))
_register("log_sigmoid.default", Step("logsigmoid"))
_register("round.default", Step("round"))
_register("exp2.default", Step("const", math.log(2)), Step("mul"), Step("exp"))
_register("log2.default", Step("log"), Step("const", 1 / math.log(2)), Step("mul"))
_register("log10.default", Step("log"), Step("const", 1 / math.log(10)), Step("mul"))
_register("selu.default", Step("elu", 1.6732632423543772, 1.0507009873554805))
_register("tan.default", Step("sin"), Step("x"), Step("cos"), Step("div"))


def clamp(t: Builder, x: Operand, low: Scalar | None, high: Scalar | None) -> Activation:
    """``x`` limited to ``low..high``; None is no limit."""
    if are_integers(t, x):
        raised = x if low is None else integers(t, "max", x, int(low))
        return need_activation(raised if high is None else integers(t, "min", raised, int(high)), "the operand")
    bounds = (-INFINITY if low is None else float(low), INFINITY if high is None else float(high))
    return t.pointwise(need_activation(x, "the operand"), Step("clamp", *bounds))


@handles("hardtanh.default")
def hardtanh(t: Builder, x: Operand, min_val: Scalar, max_val: Scalar) -> Activation:
    return clamp(t, x, min_val, max_val)


@handles("clamp.default", "clip.default")
def clamp_scalar(t: Builder, x: Operand, min: Scalar | None, max: Scalar | None) -> Activation:
    return clamp(t, x, _number(min), _number(max))


@handles("clamp_min.default")
def clamp_min(t: Builder, x: Operand, min: Scalar) -> Activation:
    return clamp(t, x, _number(min), None)


@handles("clamp_max.default")
def clamp_max(t: Builder, x: Operand, max: Scalar) -> Activation:
    return clamp(t, x, None, _number(max))


@handles("clamp.Tensor", "clip.Tensor")
def clamp_tensor(t: Builder, x: Operand, min: Operand | None, max: Operand | None) -> Operand:
    limited = x if min is None else binary(t, "max", x, min)
    return limited if max is None else binary(t, "min", limited, max)


def _number(value: object) -> float | None:
    if isinstance(value, torch.SymInt | torch.SymFloat):
        raise UnsupportedError("a bound that depends on the input's size", static=True)
    return None if value is None else float(value)  # type: ignore[arg-type]


@handles("threshold.default")
def threshold(t: Builder, x: Operand, threshold: Scalar, value: Scalar) -> Activation:
    if threshold == value:
        return clamp(t, x, threshold, None)
    return t.pointwise(need_activation(x, "the operand"), Step("threshold", float(threshold), float(value)))


@handles("leaky_relu.default")
def leaky_relu(t: Builder, x: Operand, negative_slope: Scalar) -> Activation:
    return t.pointwise(need_activation(x, "the operand"), Step("leaky_relu", float(negative_slope)))


@handles("elu.default")
def elu(t: Builder, x: Operand, alpha: Scalar, scale: Scalar, input_scale: Scalar) -> Activation:
    if input_scale != 1:
        raise UnsupportedError(f"input_scale={input_scale}")
    return t.pointwise(need_activation(x, "the operand"), Step("elu", float(alpha), float(scale)))


@handles("celu.default")
def celu(t: Builder, x: Operand, alpha: Scalar) -> Activation:
    return t.pointwise(need_activation(x, "the operand"), Step("celu", float(alpha)))


@handles("gelu.default")
def gelu(t: Builder, x: Operand, approximate: str) -> Activation:
    return t.pointwise(need_activation(x, "the operand"), Step("gelu", float(approximate == "tanh")))


@handles("softplus.default")
def softplus(t: Builder, x: Operand, beta: Scalar, threshold: Scalar) -> Activation:
    return t.pointwise(need_activation(x, "the operand"), Step("softplus", float(beta), float(threshold)))


@handles("softshrink.default")
def softshrink(t: Builder, x: Operand, lambd: Scalar) -> Activation:
    limit = float(lambd)
    return t.pointwise(
        need_activation(x, "the operand"), Step("x"), Step("clamp", -limit, limit), Step("sub")
    )  # fmt: skip


@handles("prelu.default")
def prelu(t: Builder, x: Operand, weight: Operand) -> Activation:
    x, slope = need_activation(x, "the operand"), need_constant(weight, "the slope")
    if slope.numel() == 1:
        return t.pointwise(x, Step("leaky_relu", float(slope.detach())))
    return t.emit(ops.Pointwise(PRELU, axis=1), x, slope)


@handles("pow.Tensor_Scalar")
def power(t: Builder, x: Operand, exponent: Scalar) -> Activation:
    x = need_activation(x, "the base")
    special = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    name = special.get(float(exponent))
    return t.pointwise(x, Step(name) if name else Step("pow", float(exponent)))


@handles("pow.Scalar")
def power_of_scalar(t: Builder, base: Scalar, exponent: Operand) -> Activation:
    if base <= 0:
        raise UnsupportedError(f"powers of {base}")
    x = need_activation(exponent, "the exponent")
    return t.pointwise(x, Step("const", math.log(base)), Step("mul"), Step("exp"))


def binary(t: Builder, fn: BinaryFunction, a: Operand | Scalar, b: Operand | Scalar) -> Operand:
    """``fn`` of two operands of which at least one is an activation; a scalar becomes part of a pointwise program."""
    if are_integers(t, a, b):
        return integers(t, fn, a, b)
    if t.dtype == torch.bool and fn in ("mul", "min", "add", "max"):
        logic = both if fn in ("mul", "min") else either
        return logic(t, *(value for value in (a, b) if isinstance(value, Tensor | Activation)))
    for value in (a, b):
        if isinstance(value, torch.SymInt | torch.SymFloat):
            raise UnsupportedError("arithmetic with the input's size", static=True)
    if fn == "add":
        a, b = (_reachable(value) for value in (a, b))
    left, right = _scalar(a), _scalar(b)
    if is_activation(a) and right is not None and _keeps_shape(a, b):
        return _identity_or(t, fn, a, right)
    if is_activation(b) and left is not None and _keeps_shape(b, a):
        program = (Step("const", left), Step("x"), Step(fn))
        return t.emit(ops.Pointwise(program), b, shape=b.shape)
    if isinstance(a, Tensor | Activation) and isinstance(b, Tensor | Activation):
        return t.emit(ops.Binary(fn), a, b, shape=broadcast(a.shape, b.shape))
    raise UnsupportedError("an operand that is no tensor")


def _reachable(value: Operand | Scalar) -> Operand | Scalar:
    """A constant that is added; infinity, and what is as good as that, becomes what masks have."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    endless = value > torch.finfo(torch.float32).max / 2
    return torch.where(endless, -MASKED, value) if bool(endless.any()) else value


def _scalar(value: object) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach())
    return float(value) if isinstance(value, int | float) else None


def _keeps_shape(x: Activation, other: object) -> bool:
    return not isinstance(other, Tensor) or other.dim() <= x.rank


def _identity_or(t: Builder, fn: BinaryFunction, x: Activation, value: float) -> Activation:
    neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}
    return x if neutral.get(fn) == value else t.pointwise(x, Step("const", value), Step(fn))


def _arithmetic(fn: BinaryFunction) -> Handler:
    def handler(t: Builder, a: Operand, other: Operand | Scalar, alpha: Scalar = 1) -> Operand:
        if alpha != 1:
            other = binary(t, "mul", other, alpha) if is_activation(other) else other * alpha  # type: ignore[operator]
        return binary(t, fn, a, other)

    return handler


for _name, _fn in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("subtract", "sub"), ("multiply", "mul")):
    handles(f"{_name}.Tensor", f"{_name}.Scalar")(_arithmetic(_fn))  # type: ignore[arg-type]
handles("minimum.default", "min.other")(_arithmetic("min"))
handles("maximum.default", "max.other")(_arithmetic("max"))


@handles("rsub.Scalar", "rsub.Tensor")
def rsub(t: Builder, a: Operand, other: Operand | Scalar, alpha: Scalar = 1) -> Operand:
    scaled = a if alpha == 1 else binary(t, "mul", a, alpha)
    return binary(t, "sub", other, scaled)


@handles("div.Tensor", "div.Scalar", "true_divide.Tensor", "divide.Tensor")
def div(t: Builder, a: Operand, other: Operand | Scalar) -> Operand:
    if isinstance(other, Tensor) and other.numel() > 1:
        # A product is kinder to integers than a quotient; only powers of two make the two differ by nothing.
        inverse = other.float().reciprocal()
        if torch.equal(inverse.log2().round().exp2(), inverse):
            return binary(t, "mul", a, inverse)
    return binary(t, "div", a, other)


@handles("div.Tensor_mode", "div.Scalar_mode", "floor_divide.default")
def div_rounded(t: Builder, a: Operand, other: Operand | Scalar, rounding_mode: str | None = "floor") -> Operand:
    if are_integers(t, a, other):
        if rounding_mode != "floor":
            raise UnsupportedError("integers divided without rounding down")
        return integers(t, "div", a, other)
    quotient = need_activation(div(t, a, other), "the quotient")
    return quotient if rounding_mode is None else t.pointwise(quotient, Step(rounding_mode))


@handles("remainder.Scalar", "remainder.Tensor")
def remainder(t: Builder, a: Operand, other: Operand | Scalar) -> Operand:
    if not are_integers(t, a, other):
        raise UnsupportedError("remainders of numbers that are no integers")
    return integers(t, "mod", a, other)


@handles("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(t: Builder, condition: Operand, self: Operand | Scalar, other: Operand | Scalar) -> Operand:
    """``self`` where ``condition``, else ``other``, as products with zero and one, which are exact."""
    if are_integers(t, condition, self, other):
        return chosen(t, condition, self, other)
    left, right = (_finite(value) for value in (self, other))
    terms = [_masked(t, left, condition), _masked(t, right, opposite(t, condition))]
    kept = [term for term in terms if not _is_zero(term)] or terms[:1]
    return kept[0] if len(kept) == 1 else binary(t, "add", *kept)


@handles("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(t: Builder, x: Operand, mask: Operand, value: Operand | Scalar) -> Operand:
    return where(t, mask, value, x)


def opposite(t: Builder, mask: Operand) -> Operand:
    """True where ``mask`` is False."""
    return ~mask if isinstance(mask, Tensor) else invert(t, mask)


def _finite(value: Operand | Scalar) -> Operand:
    """Scalars as tensors; what is as good as minus infinity as ``MASKED``."""
    return value if is_activation(value) else to_numpy_safe(torch.as_tensor(value, dtype=torch.float32))


def _masked(t: Builder, value: Operand, mask: Operand) -> Operand:
    """``value`` where ``mask``, else zero."""
    if isinstance(mask, Activation):
        return value if _is_zero(value) else binary(t, "mul", as_float(mask), value)
    if isinstance(value, Activation):
        return value if bool(mask.all()) and mask.dim() <= value.rank else binary(t, "mul", value, mask.float())
    return torch.where(mask, value, torch.zeros(()))


def _is_zero(value: Operand) -> bool:
    return isinstance(value, Tensor) and not bool(value.any())
