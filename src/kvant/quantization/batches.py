"""Calibration inputs as users give them, as the tensors that the graph takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from kvant.errors import CalibrationError, InputError
from kvant.graph import Graph, TensorType
from kvant.quantization.statistics import Sample
from kvant.runtime import by_name


def batches(graph: Graph, calibration: Iterable[Any]) -> Iterator[Sample]:
    """Each calibration input as tensors in the order of the graph's inputs.

    Raises:
        CalibrationError: what is given is no iterable, or an input is not of the kind that the model takes.
    """
    try:
        given = iter(calibration)
    except TypeError as error:
        raise CalibrationError(
            f"calibration is a {type(calibration).__name__}, expected an iterable of inputs, such as a list or a loader"
        ) from error
    return (flatten(graph, batch) for batch in given)


def flatten(graph: Graph, batch: Any) -> Sample:
    """The tensors of one calibration input in the order of the graph's inputs."""
    names = [entry.name for entry in graph.inputs]
    leaves = _leaves(names, batch)
    if len(leaves) != len(names):
        raise CalibrationError(
            f"a calibration input holds {len(leaves)} tensors, the model takes {len(names)} ({', '.join(names)}); "
            "for a loader of (image, label) pairs pass (image for image, label in loader)"
        )
    return [_tensor(entry.name, entry.type, leaf) for entry, leaf in zip(graph.inputs, leaves, strict=True)]


def _leaves(names: list[str], batch: Any) -> list[Any]:
    """What is in a calibration input; dicts are read by name, whatever their order, as a loaded model reads them."""
    if not _holds_dict(batch):
        return [leaf for leaf in torch.utils._pytree.tree_leaves(batch) if leaf is not None]
    try:
        named = by_name(names, batch if isinstance(batch, tuple | list) else (batch,))
    except InputError as error:
        raise CalibrationError(f"a calibration input does not fit: {error}") from error
    if missing := [name for name in names if named.get(name) is None]:
        raise CalibrationError(
            f"a calibration input holds {', '.join(named) or 'nothing'}; the model takes {', '.join(names)}, so "
            f"{', '.join(missing)} is missing"
        )
    return [named[name] for name in names]


def _holds_dict(batch: Any) -> bool:
    return isinstance(batch, Mapping) or (isinstance(batch, tuple | list) and any(map(_holds_dict, batch)))


def _tensor(name: str, type: TensorType, value: Any) -> torch.Tensor:
    tensor = _from_numpy(name, value) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, torch.Tensor):
        raise CalibrationError(
            f"calibration input {name!r} is a {value.__class__.__name__}, expected a tensor or an array"
        )
    if str(tensor.dtype).removeprefix("torch.") != type.dtype:
        raise CalibrationError(f"calibration input {name!r} is {tensor.dtype}, the model takes {type.dtype}")
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "without values (on the meta device)" if tensor.is_meta else f"not dense ({tensor.layout})"
        raise CalibrationError(f"calibration input {name!r} is a tensor {kind}, expected one with all its values")
    return tensor.detach().cpu()


def _from_numpy(name: str, value: np.ndarray) -> torch.Tensor:
    """As a tensor; torch takes neither reversed axes nor other orders of bytes, and warns of what is read-only."""
    if np.ma.is_masked(value):
        raise CalibrationError(f"calibration input {name!r} has elements that are masked; fill them first: x.filled(0)")
    array = value.astype(value.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise CalibrationError(f"calibration input {name!r} is an array of {value.dtype}, not of numbers") from error
