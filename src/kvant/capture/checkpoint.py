"""State dicts in files of PyTorch, read without running anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch

from kvant.errors import CheckpointError


def read_checkpoint(path: str | PathLike[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict, bare or under "state_dict", without the "module." that `DataParallel` leaves.

    Raises CheckpointError, which names the file, if it cannot be read or holds none.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler, zip reader or the system raise
        raise CheckpointError(f"{path} cannot be read as a PyTorch checkpoint: {_reason(error)}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not (isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())):
        raise CheckpointError(f"{path} holds no state dict (a dict of tensors, bare or under 'state_dict')")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


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
