"""Dimensions: an int, or an expression over the symbols of the input shapes, written in postfix.

``("height", 7, "+", 8, "//")`` is ``(height + 7) // 8``. Expressions are plain tuples, so they travel in a file as
they are, are compared with ``==``, and are evaluated by a stack of integers, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvant.errors import GraphError

Dim = int | tuple[int | str, ...]
OPERATORS = ("+", "-", "*", "//", "%", "min", "max")
MAX_VALUE = 2**40


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    """The value of ``dim`` where each symbol has the size that ``bindings`` gives.

    >>> evaluate(("h", 7, "+", 8, "//"), {"h": 16})
    2
    """
    if isinstance(dim, int):
        return dim
    stack: list[int] = []
    for token in dim:
        if isinstance(token, int):
            stack.append(token)
        elif token in OPERATORS:
            if len(stack) < 2:
                raise GraphError(f"the dimension {show(dim)} is malformed: {token!r} lacks an operand")
            right, left = stack.pop(), stack.pop()
            stack.append(_apply(token, left, right, dim))
        elif token in bindings:
            stack.append(bindings[token])
        else:
            raise GraphError(f"the dimension {show(dim)} names an unknown symbol {token!r}")
        if abs(stack[-1]) > MAX_VALUE:
            raise GraphError(f"the dimension {show(dim)} is larger than 2**40")
    if len(stack) != 1:
        raise GraphError(f"the dimension {show(dim)} is malformed")
    return stack[0]


def _apply(operator: str, left: int, right: int, dim: Dim) -> int:
    if operator in ("//", "%") and right == 0:
        raise GraphError(f"the dimension {show(dim)} divides by zero")
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "//":
            return left // right
        case "%":
            return left % right
        case "min":
            return min(left, right)
        case _:
            return max(left, right)


def symbols(dim: Dim) -> set[str]:
    """The symbols that ``dim`` mentions."""
    if isinstance(dim, int):
        return set()
    return {token for token in dim if isinstance(token, str) and token not in OPERATORS}


def is_symbol(dim: Dim) -> bool:
    """Whether ``dim`` is one symbol alone, as in an input's shape."""
    return isinstance(dim, tuple) and len(dim) == 1 and isinstance(dim[0], str)


def combine(operator: str, left: Dim, right: Dim) -> Dim:
    """``left operator right`` as a dimension, computed at once where both are integers.

    >>> combine("*", ("h",), 2)
    ('h', 2, '*')
    """
    if isinstance(left, int) and isinstance(right, int):
        return _apply(operator, left, right, left)
    return (*_tokens(left), *_tokens(right), operator)


def _tokens(dim: Dim) -> tuple[int | str, ...]:
    return (dim,) if isinstance(dim, int) else dim


def show(dim: Dim) -> str:
    """``dim`` for a person to read: ``height``, ``224``, ``[height 8 //]``."""
    if isinstance(dim, int):
        return str(dim)
    return str(dim[0]) if len(dim) == 1 else "[" + " ".join(str(token) for token in dim) + "]"


def show_shape(shape: Sequence[Dim]) -> str:
    """A shape for a person to read: ``batch x 3 x height x width``."""
    return " x ".join(show(dim) for dim in shape) if shape else "scalar"
