"""Nested arguments and outputs, taken apart into flat lists of named tensors and put together again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kvant.errors import CaptureError
from kvant.graph import DTYPES, Structure

INPUT_DTYPES = {getattr(torch, name): name for name in DTYPES}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The tensors of a call by name, and how to make the call from other tensors in their places."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    rebuild: Callable[[Sequence[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]


def flatten_arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """The tensors in ``args`` and ``kwargs``, named after the parameters of ``model.forward``.

    A tensor inside a tuple, list or dict is called ``parameter_0`` or ``parameter_key``. Whatever is not a tensor is
    kept as it is and becomes part of the graph.
    """
    found: dict[str, Tensor] = {}
    positional = tuple(
        _replace_tensors(value, name, found) for value, name in zip(args, _names(model, len(args)), strict=True)
    )
    keyword = {name: _replace_tensors(value, name, found) for name, value in kwargs.items()}
    if not found:
        raise CaptureError("the example inputs hold no tensor; give at least one, such as torch.zeros(1, 3, 224, 224)")

    def rebuild(tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(found, tensors, strict=True))
        call: tuple[tuple[Any, ...], dict[str, Any]] = _put_tensors((positional, keyword), given)
        return call

    return Arguments(tuple(found), tuple(found.values()), rebuild)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Stands in the arguments where the tensor called ``name`` goes."""

    name: str


def _names(model: nn.Module, count: int) -> list[str]:
    names: list[str] = []
    rest = "args"
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = parameter.name
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[:count] + [f"{rest}_{index}" for index in range(count - len(names))]


def _replace_tensors(value: Any, name: str, found: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        _check_input(name, value)
        unique, count = name, 1
        while unique in found:
            unique, count = f"{name}_{count}", count + 1
        found[unique] = value
        return _Place(unique)
    return _rebuild(value, lambda key, child: _replace_tensors(child, f"{name}_{key}", found))


def _put_tensors(value: Any, given: Mapping[str, Tensor]) -> Any:
    if isinstance(value, _Place):
        return given[value.name]
    return _rebuild(value, lambda _, child: _put_tensors(child, given))


def _rebuild(value: Any, child: Callable[[object, Any], Any]) -> Any:
    """``value`` with ``child(key, entry)`` in place of the entries of a tuple, list or dict."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(child(key, entry) for key, entry in zip(value._fields, value, strict=True)))
    if isinstance(value, tuple | list):
        return type(value)(child(index, entry) for index, entry in enumerate(value))
    if isinstance(value, dict):
        return {key: child(key, entry) for key, entry in value.items()}
    return value


def _check_input(name: str, value: Tensor) -> None:
    if value.dtype not in INPUT_DTYPES:
        known = ", ".join(str(dtype) for dtype in INPUT_DTYPES)
        raise CaptureError(f"input {name!r} has dtype {value.dtype}, expected one of {known}")
    if value.device.type != "cpu":
        raise CaptureError(f"input {name!r} lives on {value.device}; give example inputs on the CPU")
    if value.layout != torch.strided:
        raise CaptureError(f"input {name!r} is no dense tensor ({value.layout}); give one made by .to_dense()")
    if value.numel() == 0:
        raise CaptureError(f"input {name!r} has shape {tuple(value.shape)}: it is empty")


def flatten_outputs(value: Any) -> tuple[list[Tensor], Structure]:
    """The tensors that a model returned, and their nesting.

    Tuples and lists become lists; dicts, named tuples, dataclasses and mappings such as the outputs of Hugging Face
    models become dicts, without the entries that are None.
    """
    tensors: list[Tensor] = []
    structure = _flatten_output(value, tensors)
    if not tensors:
        raise CaptureError("the model returns no tensor")
    return tensors, structure


def _flatten_output(value: Any, tensors: list[Tensor]) -> Structure:
    if isinstance(value, Tensor):
        tensors.append(value)
        return len(tensors) - 1
    fields = _fields(value)
    if fields is not None:
        return {
            str(name): _flatten_output(entry, tensors) for name, entry in fields.items() if entry is not None
        }  # fmt: skip
    if isinstance(value, tuple | list):
        return [_flatten_output(entry, tensors) for entry in value]
    cache = "; a language model returns none if called with use_cache=False" if "Cache" in type(value).__name__ else ""
    raise CaptureError(
        f"the model returns a {type(value).__name__}; kvant takes tensors, and tuples, lists, dicts and dataclasses "
        f"of them. Return only tensors from forward(){cache}"
    )


def _fields(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    return None
