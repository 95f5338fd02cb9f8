"""What a caller gives and gets: arguments become checked arrays, results take the structure of the model's outputs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import InputError
from kvant.graph import Graph, Input, Structure, ops, show_shape
from kvant.runtime.arithmetic import Target, scale_of, target_of

Array = npt.NDArray[Any]
_PIXELS = Target("uint8", 0, 0, 255)


def is_torch(value: object) -> bool:
    """Whether ``value`` is a torch.Tensor; torch is never imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def collect(graph: Graph, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Array]:
    """Arrays for the graph's inputs, by name, from positional and named arguments.

    Raises:
        InputError: naming what is missing, surplus, or of the wrong rank, shape, dtype or value.
    """
    names = [entry.name for entry in graph.inputs]
    args, kwargs = _flat(names, args, kwargs)
    if len(args) > len(names):
        raise InputError(f"{len(args)} inputs were given, the model takes {len(names)}: {', '.join(names)}")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise InputError(f"unknown input {name!r}; the model takes {', '.join(names)}")
        if name in given:
            raise InputError(f"input {name!r} was given twice, by position and by name")
        given[name] = value
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(f"input {', '.join(map(repr, missing))} is missing; the model takes {', '.join(names)}")
    return {entry.name: _check(graph, entry, given[entry.name]) for entry in graph.inputs}


def any_torch(values: Iterable[object]) -> bool:
    """Whether a torch.Tensor is among ``values`` or in a tuple, list or dict among them."""
    for value in values:
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
        if is_torch(value) or any_torch(inner):
            return True
    return False


def by_name(names: Sequence[str], values: Sequence[object]) -> Mapping[str, object]:
    """What is in positional arguments, some of which are dicts, by the names that inputs have here.

    Raises:
        InputError: there are more than names.
    """
    return _flat(names, values, {})[1]


def _flat(
    names: Sequence[str], args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[Sequence[object], Mapping[str, object]]:
    """Arguments without tuples, lists and dicts of arrays: what is in them, by position or by the name it has here.

    Capture calls an array within an argument ``parameter_0`` or ``parameter_key``, nested ones alike.
    """
    if not any(_nests(value) for value in (*args, *kwargs.values())):
        return args, kwargs
    named: dict[str, object] = {}
    for path, leaf in (entry for value in args for entry in _leaves(value)):
        key = _called(path, names) if path and not path.rpartition("_")[2].isdigit() else None
        name = key or next((name for name in names if name not in named), None)
        if name is None:
            raise InputError(f"more inputs were given than the {len(names)} that the model takes: {', '.join(names)}")
        named[name] = leaf
    for name, value in kwargs.items():
        named.update((name + path, leaf) for path, leaf in _leaves(value))
    return (), named


def _nests(value: object) -> bool:
    """Whether arrays are within ``value``; lists of numbers are arrays themselves."""
    if isinstance(value, tuple | list):
        return any(isinstance(entry, np.ndarray) or is_torch(entry) or _nests(entry) for entry in value)
    return isinstance(value, Mapping)


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if not _nests(value):
        yield path, value
        return
    for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):  # type: ignore[arg-type]
        yield from _leaves(entry, f"{path}_{key}")


def _called(path: str, names: Sequence[str]) -> str:
    """The input that ``_key`` in a dict given by position is: it is called so, or so after its parameter's name."""
    if path[1:] in names:
        return path[1:]
    return next((name for name in names if name.endswith(path)), path[1:])


def not_quantized(graph: Graph) -> list[str]:
    """Inputs of real numbers that ``check_finite`` must look at: others are looked at where they are quantized."""
    quantized = {node.inputs[0] for node in graph.nodes if isinstance(node.op, ops.Quantize)}
    return [entry.name for entry in graph.inputs if entry.type.dtype == "float32" and entry.name not in quantized]


def takes_pixels(graph: Graph, name: str) -> bool:
    """Whether a real input is only rounded to the integers 0 to 255, as which uint8 gives it already."""
    readers = [node for node in graph.nodes if name in node.inputs]
    types = [graph.types[node.output] for node in readers if isinstance(node.op, ops.Quantize)]
    if not types or len(types) < len(readers) or name in graph.outputs:
        return False
    return all(scale_of(type) == 1 and target_of(type) == _PIXELS for type in types)


def check_finite(name: str, array: Array) -> None:
    """Refuse NaN and infinity.

    Raises:
        InputError: there is one.
    """
    if not np.isfinite(array).all():
        raise not_finite(name, array.shape)


def not_finite(name: str, shape: tuple[int, ...]) -> InputError:
    """The error for an input that holds NaN or infinity."""
    return InputError(f"input {name!r} (shape {show_shape(shape)}) holds NaN or infinity")


def _check(graph: Graph, entry: Input, value: object) -> Array:
    array = _to_numpy(entry, value)
    if array.ndim != len(entry.shape):
        raise InputError(
            f"input {entry.name!r} has rank {array.ndim} (shape {show_shape(array.shape)}), "
            f"expected rank {len(entry.shape)}: {show_shape(entry.shape)}"
        )
    if array.size == 0:
        raise InputError(
            f"input {entry.name!r} is empty (shape {show_shape(array.shape)}), expected {show_shape(entry.shape)}"
        )
    if array.dtype == np.uint8 and entry.type.dtype == "float32" and takes_pixels(graph, entry.name):
        return array.astype(np.float32)
    return array if array.dtype is entry.type.numpy else _check_dtype(entry, array)


def _to_numpy(entry: Input, value: object) -> Array:
    if np.ma.is_masked(value):
        raise InputError(
            f"input {entry.name!r} is an array some of whose elements are masked; fill them first: x.filled(0)"
        )
    try:
        array = value.detach().cpu().numpy() if is_torch(value) else np.asarray(value)  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError) as error:
        hint = f"; give a dense tensor of torch.{entry.type.dtype}" if is_torch(value) else ""
        raise InputError(
            f"input {entry.name!r} cannot be read as an array of {entry.type.dtype}: {error}{hint}"
        ) from error
    if array.dtype.kind not in "biufc" and not isinstance(value, np.ndarray):
        raise InputError(f"input {entry.name!r} is a {type(value).__name__}, expected an array of {entry.type.dtype}")
    return array


def _check_dtype(entry: Input, array: Array) -> Array:
    """An array of the input's dtype. Indices may be any integers; nothing else is converted silently."""
    wanted = entry.type.numpy
    if array.dtype.newbyteorder("=") == wanted:
        return array.astype(wanted, copy=False)
    if wanted == np.int64 and array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
            raise InputError(f"input {entry.name!r} holds {array.max()}, more than int64 holds")
        return array.astype(np.int64)
    raise InputError(
        f"input {entry.name!r} has dtype {array.dtype}, expected {wanted}; convert it with .astype(np.{wanted}) "
        f"(NumPy) or .to(torch.{wanted}) (torch)"
    )


def nest(structure: Structure, outputs: Sequence[object]) -> Any:
    """The outputs in the model's own nesting: an index is an output, a list a tuple, a dict a dict."""
    if isinstance(structure, dict):
        return {key: nest(child, outputs) for key, child in structure.items()}
    if isinstance(structure, list):
        return tuple(nest(child, outputs) for child in structure)
    return outputs[structure]


def to_torch(outputs: Sequence[Array]) -> list[object]:
    """The outputs as tensors of the torch that the caller has imported."""
    torch = sys.modules["torch"]
    return [torch.from_numpy(output) for output in outputs]
