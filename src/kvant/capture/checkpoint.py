"""State dicts in files of PyTorch and of safetensors, read without running anything in them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from kvant.errors import CheckpointError
from kvant.format import check_regular

_PREFIX = "module."  # what `DataParallel` leaves
# How files of torch.save begin: zip archives, and pickles of old.
_TORCH = (b"PK\x03\x04", b"\x80")


def read_checkpoint(path: str | PathLike[str], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a file for `network`'s state dict, which they fit: no key more, none less.

    The file is one of safetensors, whatever it is called, or a PyTorch checkpoint that holds a state dict, bare or
    under "state_dict". A prefix "module.", left by `DataParallel`, is dropped where the network has none.

    Raises CheckpointError, which names the file, if it cannot be read or holds no state dict, or listing every missing
    key, every surplus key and every tensor of another kind or shape.
    """
    wanted = network.state_dict()
    state = {_plain(key, wanted): value for key, value in _read(path).items()}
    problems = _differences(wanted, state)
    if problems:
        raise CheckpointError(f"{path} does not fit {type(network).__name__}:\n  " + "\n  ".join(problems))
    return state


def _read(path: str | PathLike[str]) -> Mapping[str, torch.Tensor]:
    check_regular(path, CheckpointError)
    try:
        with Path(path).open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error.strerror or error}") from error
    if start.startswith(_TORCH):
        return _read_torch(path)
    if start[8:9] == b"{" or Path(path).suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be read as a safetensors file: {error}") from error
    raise CheckpointError(
        f"{path} cannot be read as a checkpoint: it is no file of torch.save or safetensors (it begins with {start!r})"
    )


def _read_torch(path: str | PathLike[str]) -> Mapping[str, torch.Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of ways to read that are not taken
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler, zip reader or the system raise
        raise CheckpointError(f"{path} cannot be read as a PyTorch checkpoint: {_reason(error)}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not (isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())):
        raise CheckpointError(
            f"{path} holds no state dict (a dict of tensors, bare or under 'state_dict'), but {_held(content)}; save "
            "model.state_dict() alone"
        )
    return content


def _held(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(map(repr, list(content)[:8]))}"
    return f"a {type(content).__name__}"


def _reason(error: Exception) -> str:
    """torch's own words advise to run what a file holds, or are no more than a number."""
    if isinstance(error, OSError):
        return str(error.strerror or error)
    if "Unsupported" in str(error):
        return (
            "it holds other Python objects than tensors, whose code is not run here; where it was made, save "
            "model.state_dict() alone"
        )
    return f"it is damaged, incomplete, or none ({type(error).__name__})"


def _plain(key: object, wanted: Mapping[str, torch.Tensor]) -> str:
    name = str(key)
    return name if name in wanted else name.removeprefix(_PREFIX)


def _differences(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    missing = [f"missing: {key} {tuple(wanted[key].shape)}" for key in wanted if key not in found]
    surplus = [f"surplus: {key} {tuple(found[key].shape)}" for key in found if key not in wanted]
    both = [(key, wanted[key], found[key]) for key in wanted if key in found]
    kinds = [f"wrong kind: {key} is {_kind(value)}" for key, like, value in both if not _can_be_copied(value, like)]
    shapes = [
        f"wrong shape: {key} is {tuple(value.shape)}, expected {tuple(like.shape)}"
        for key, like, value in both
        if value.shape != like.shape
    ]
    return missing + surplus + kinds + shapes


def _can_be_copied(value: torch.Tensor, like: torch.Tensor) -> bool:
    """Whether a tensor can take the place of another with its values as they are, but for rounding.

    torch copies integers, which have a scale elsewhere, and the real part of complex numbers without a word.
    """
    if value.is_quantized or value.is_meta or value.layout != torch.strided:
        return False
    return value.is_floating_point() or not (like.is_floating_point() or value.is_complex())


def _kind(value: torch.Tensor) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    if value.is_meta:
        return f"{kind} without values (on the meta device)"
    return kind if value.layout == torch.strided else f"{kind}, {str(value.layout).removeprefix('torch.')}"
