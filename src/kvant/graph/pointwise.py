"""The functions that a ``Pointwise`` program is made of, and their values in float64: what tables are filled with.

A program is a list of ``Step``s for a stack machine. ``x`` pushes the input, ``const`` a constant, ``param`` the
per-channel parameter; a unary function replaces the top of the stack, a binary one the two topmost entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kvant.errors import GraphError
from kvant.graph.ops import Step

Array = NDArray[np.float64]
SOURCES = ("x", "const", "param")
PRELU = (Step("x"), Step("param"), Step("prelu"))
"""A slope for each channel, below 0."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    # One side at a time, so that exp never overflows.
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + small), small / (1 + small)), np.float64)


def _softplus(x: Array, beta: float, threshold: float) -> Array:
    return np.asarray(np.where(x * beta > threshold, x, np.logaddexp(0.0, x * beta) / beta), np.float64)


def _gelu(x: Array, tanh: float) -> Array:
    if tanh:
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), np.float64)
    return 0.5 * x * (1 + np.asarray(_erf(x * math.sqrt(0.5)), np.float64))


# name -> function of (input, a, b); an absent attribute of a Step is 0.
UNARY: dict[str, Callable[[Array, float, float], Array]] = {
    "clamp": lambda x, a, b: np.minimum(np.maximum(x, a), b),
    "threshold": lambda x, a, b: np.where(x > a, x, b),
    "above": lambda x, a, b: np.where(x > a, b, 0.0),
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, a * x),
    "elu": lambda x, a, b: b * np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    "celu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x / a, 0))),
    "sigmoid": lambda x, a, b: _sigmoid(x),
    "tanh": lambda x, a, b: np.tanh(x),
    "silu": lambda x, a, b: x * _sigmoid(x),
    "mish": lambda x, a, b: x * np.tanh(np.logaddexp(0.0, x)),
    "gelu": lambda x, a, b: _gelu(x, a),
    "hardswish": lambda x, a, b: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x, a, b: np.clip(x + 3, 0, 6) / 6,
    "softplus": _softplus,
    "logsigmoid": lambda x, a, b: -np.logaddexp(0.0, -x),
    "exp": lambda x, a, b: np.exp(x),
    "expm1": lambda x, a, b: np.expm1(x),
    "log": lambda x, a, b: np.log(x),
    "log1p": lambda x, a, b: np.log1p(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "rsqrt": lambda x, a, b: 1 / np.sqrt(x),
    "reciprocal": lambda x, a, b: 1 / x,
    "square": lambda x, a, b: x * x,
    "pow": lambda x, a, b: np.power(x, a),
    "abs": lambda x, a, b: np.abs(x),
    "neg": lambda x, a, b: -x,
    "sign": lambda x, a, b: np.sign(x),
    "floor": lambda x, a, b: np.floor(x),
    "ceil": lambda x, a, b: np.ceil(x),
    "round": lambda x, a, b: np.rint(x),
    "trunc": lambda x, a, b: np.trunc(x),
    "sin": lambda x, a, b: np.sin(x),
    "cos": lambda x, a, b: np.cos(x),
    "erf": lambda x, a, b: np.asarray(_erf(x), np.float64),
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "min": np.minimum,
    "max": np.maximum,
    "prelu": lambda x, y: np.where(x > 0, x, y * x),
}


def evaluate(program: Sequence[Step], x: np.ndarray, param: np.ndarray | None = None) -> Array:
    """The value of ``program`` at every element of ``x``, in float64 whatever the type of ``x``.

    Args:
        program: the steps of a ``Pointwise``.
        x: inputs, any shape.
        param: the per-channel parameter, already of a shape that broadcasts against ``x``.

    Raises:
        GraphError: an unknown function, a missing parameter, or a stack that does not end with one entry.

    >>> evaluate((Step("x"), Step("x"), Step("sigmoid"), Step("mul")), np.array([0.0, 2.0])).round(3).tolist()
    [0.0, 1.762]
    """
    stack: list[Array] = []
    # Inputs far outside a function's domain give infinity or NaN; the caller judges them, no warning is due.
    with np.errstate(all="ignore"):
        for step in program:
            _apply(step, stack, np.asarray(x, np.float64), param)
    if len(stack) != 1:
        raise GraphError(f"a pointwise program leaves {len(stack)} entries on its stack, expected one: {program}")
    return np.array(np.broadcast_to(stack[0], np.broadcast_shapes(stack[0].shape, np.shape(x))), np.float64)


def _apply(step: Step, stack: list[Array], x: Array, param: np.ndarray | None) -> None:
    if step.fn == "x":
        stack.append(x)
    elif step.fn == "const":
        stack.append(np.float64(step.a) * np.ones(()))
    elif step.fn == "param":
        if param is None:
            raise GraphError("a pointwise program reads a parameter, but none is given")
        stack.append(np.asarray(param, np.float64))
    elif step.fn in UNARY:
        stack.append(UNARY[step.fn](_pop(stack, step), step.a, step.b))
    elif step.fn in BINARY:
        right, left = _pop(stack, step), _pop(stack, step)
        stack.append(np.asarray(BINARY[step.fn](left, right), np.float64))
    else:
        raise GraphError(f"unknown pointwise function {step.fn!r}")


def _pop(stack: list[Array], step: Step) -> Array:
    if not stack:
        raise GraphError(f"pointwise function {step.fn!r} lacks an operand")
    return stack.pop()
