"""The torch float32 version of ``Pointwise`` programs; their float64 definition is ``kvant.graph.pointwise``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kvant.errors import GraphError
from kvant.graph.ops import Step

Program = Callable[[Tensor, Tensor | None], Tensor]
Value = Tensor | float


def _elu(x: Tensor, alpha: float, scale: float) -> Tensor:
    return F.elu(x, alpha) if scale == 1 else F.elu(x, alpha) * scale


_UNARY: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "clamp": lambda x, a, b: torch.relu(x) if (a, b) == (0.0, torch.inf) else x.clamp(a, b),
    "threshold": F.threshold,
    "above": lambda x, a, b: torch.where(x > a, b, 0.0),
    "leaky_relu": lambda x, a, b: F.leaky_relu(x, a),
    "elu": _elu,
    "celu": lambda x, a, b: F.celu(x, a),
    "sigmoid": lambda x, a, b: x.sigmoid(),
    "tanh": lambda x, a, b: x.tanh(),
    "silu": lambda x, a, b: F.silu(x),
    "mish": lambda x, a, b: F.mish(x),
    "gelu": lambda x, a, b: F.gelu(x, approximate="tanh" if a else "none"),
    "hardswish": lambda x, a, b: F.hardswish(x),
    "hardsigmoid": lambda x, a, b: F.hardsigmoid(x),
    "softplus": F.softplus,
    "logsigmoid": lambda x, a, b: F.logsigmoid(x),
    "exp": lambda x, a, b: x.exp(),
    "expm1": lambda x, a, b: x.expm1(),
    "log": lambda x, a, b: x.log(),
    "log1p": lambda x, a, b: x.log1p(),
    "sqrt": lambda x, a, b: x.sqrt(),
    "rsqrt": lambda x, a, b: x.rsqrt(),
    "reciprocal": lambda x, a, b: x.reciprocal(),
    "square": lambda x, a, b: x.square(),
    "pow": lambda x, a, b: x.pow(a),
    "abs": lambda x, a, b: x.abs(),
    "neg": lambda x, a, b: x.neg(),
    "sign": lambda x, a, b: x.sign(),
    "floor": lambda x, a, b: x.floor(),
    "ceil": lambda x, a, b: x.ceil(),
    "round": lambda x, a, b: x.round(),
    "trunc": lambda x, a, b: x.trunc(),
    "sin": lambda x, a, b: x.sin(),
    "cos": lambda x, a, b: x.cos(),
    "erf": lambda x, a, b: x.erf(),
}


def _minimum(x: Value, y: Value) -> Value:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.minimum(x, y)
    tensor, bound = (x, y) if isinstance(x, Tensor) else (y, x)
    return torch.clamp(tensor, max=bound) if isinstance(tensor, Tensor) else min(tensor, bound)


def _maximum(x: Value, y: Value) -> Value:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.maximum(x, y)
    tensor, bound = (x, y) if isinstance(x, Tensor) else (y, x)
    return torch.clamp(tensor, min=bound) if isinstance(tensor, Tensor) else max(tensor, bound)


_BINARY: dict[str, Callable[[Value, Value], Value]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "min": _minimum,
    "max": _maximum,
    "prelu": lambda x, y: torch.where(torch.as_tensor(x) > 0, x, x * y),
}


def compile_program(program: Sequence[Step]) -> Program:
    """A function of (input, parameter shaped to broadcast or None) that computes ``program`` in float32.

    Raises:
        GraphError: an unknown function.
    """
    known = {"x", "const", "param", *_UNARY, *_BINARY}
    for step in program:
        if step.fn not in known:
            raise GraphError(f"unknown pointwise function {step.fn!r}")
    if len(program) == 2 and program[1].fn in _UNARY:
        function, step = _UNARY[program[1].fn], program[1]
        return lambda x, param: function(x, step.a, step.b)
    return lambda x, param: _interpret(program, x, param)


def _interpret(program: Sequence[Step], x: Tensor, param: Tensor | None) -> Tensor:
    stack: list[Value] = []
    for step in program:
        if step.fn == "x":
            stack.append(x)
        elif step.fn == "const":
            stack.append(step.a)
        elif step.fn == "param":
            stack.append(_given(param))
        elif step.fn in _UNARY:
            stack.append(_UNARY[step.fn](torch.as_tensor(stack.pop()), step.a, step.b))
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(_BINARY[step.fn](left, right))
    return torch.as_tensor(stack.pop(), dtype=torch.float32)


def _given(param: Tensor | None) -> Tensor:
    if param is None:
        raise GraphError("a pointwise program reads a parameter, but the node has none")
    return param
