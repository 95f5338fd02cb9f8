"""The table of operators: which function turns which ATen operator into nodes of the graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from kvant.capture.builder import Builder

Handler = Callable[..., Any]
Function = TypeVar("Function", bound=Handler)


class UnsupportedError(Exception):
    """Raised by a handler for arguments that it has no answer to; the message says what they are.

    Attributes:
        static: whether fixed input sizes might help.
    """

    def __init__(self, reason: str, *, static: bool = False) -> None:
        self.static = static
        super().__init__(reason)


_HANDLERS: dict[str, tuple[Handler, tuple[str, ...]]] = {}


def handles(*operators: str) -> Callable[[Function], Function]:
    """Declare a function to be the handler of ATen operators, named ``relu`` (all overloads) or ``add.Tensor``.

    The function gets the builder, the operator's first argument, and those further arguments of the operator's schema
    that it names as parameters, defaults filled in.
    """

    def register(function: Function) -> Function:
        names = tuple(inspect.signature(function).parameters)[2:]
        for operator in operators:
            _HANDLERS[operator] = (function, names)
        return function

    return register


def find(operator: str) -> Handler | None:
    """The handler of ``add.Tensor``, called with the builder and all of the operator's arguments by name."""
    entry = _HANDLERS.get(operator) or _HANDLERS.get(operator.partition(".")[0])
    if entry is None:
        return None
    function, names = entry
    activation = str(list(inspect.signature(function).parameters.values())[1].annotation) == "Activation"

    def call(builder: Builder, arguments: Mapping[str, Any]) -> Any:
        first = next(iter(arguments.values()))
        # A constant gets here only together with a free size; handlers say by their annotation if they can take it.
        if activation and isinstance(first, Tensor):
            raise UnsupportedError("a constant whose shape depends on the input's", static=True)
        return function(builder, first, **{name: arguments[name] for name in names if name in arguments})

    return call


def supported() -> list[str]:
    """Names of all ATen operators that have a handler, sorted."""
    return sorted(_HANDLERS)
