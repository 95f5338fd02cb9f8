"""The model that a command names, with the weights of a file."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvant import KvantError, MissingDependencyError

if TYPE_CHECKING:
    import torch


class FactoryError(KvantError):
    """The user's code that makes the model failed."""


def need_torch() -> None:
    """Say what to install where torch is missing."""
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError("quantizing needs torch: pip install 'kvant[torch]'") from error


def build_model(target: str, weights: Path | None) -> torch.nn.Module:
    """Call the factory that ``MODULE:FACTORY`` names and load ``weights`` into what it gives.

    Raises:
        FactoryError: it cannot be imported, fails, or gives no module.
        CheckpointError: the weights cannot be read or do not fit; the message lists every key at fault.
    """
    need_torch()
    import torch

    factory = _find(target)
    model = factory if isinstance(factory, torch.nn.Module) else _guard(target, factory)
    if not isinstance(model, torch.nn.Module):
        raise FactoryError(f"{target} gave a {type(model).__name__}, expected a torch.nn.Module")
    if weights is not None:
        from kvant.capture import read_checkpoint

        model.load_state_dict(read_checkpoint(weights, model))
    return model.eval()


def _find(target: str) -> Any:
    module, _, path = target.partition(":")
    if not module or not path:
        raise typer.BadParameter(f"{target!r} is not of the form MODULE:FACTORY, such as torchvision.models:resnet18")
    # As `python -m` does: the modules of the folder one works in can be named.
    sys.path.insert(0, os.getcwd())
    found = _guard(target, lambda: importlib.import_module(module))
    for name in path.split("."):
        if not hasattr(found, name):
            raise FactoryError(f"{target}: {module} has no {name!r}")
        found = getattr(found, name)
    return found


def _guard(target: str, call: Callable[[], Any]) -> Any:
    """Run the user's code; what it raises becomes one line that says where."""
    try:
        return call()
    except KvantError:
        raise
    except (Exception, SystemExit) as error:  # a script that ends itself ends no command
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({last.filename}:{last.lineno})" if last.filename != __file__ else ""
        words = ": ".join(filter(None, (type(error).__name__, str(error))))
        raise FactoryError(f"{target}: {words}{where}") from error
