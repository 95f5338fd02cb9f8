"""What must hold of a model before it is captured."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from kvant.errors import CaptureError, ModelStateError


def check_model(model: object) -> nn.Module:
    """``model``, if it is a module in evaluation mode on the CPU whose weights are finite float32.

    Raises:
        CaptureError: it is no torch.nn.Module.
        ModelStateError: training mode, another device, another precision, NaN or infinity; the message names what.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"expected a torch.nn.Module, got {_describe(model)}. Wrap a function in a module whose forward() calls it"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a TorchScript module cannot be captured; give the torch.nn.Module it was made from")
    _check_mode(model)
    for name, kind, value in _tensors(model):
        _check_tensor(name, kind, value)
    return model


def _describe(model: object) -> str:
    return f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"


def _check_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training:
            where = (
                f"its submodule {name!r} ({type(module).__name__})" if name else f"the model {type(module).__name__}"
            )
            raise ModelStateError(
                f"{where} is in training mode; call model.eval() first, so that batch norm and dropout do what they "
                "do in use"
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    parameters = ((name, "parameter", value) for name, value in model.named_parameters())
    buffers = ((name, "buffer", value) for name, value in model.named_buffers())
    return chain(parameters, buffers)


def _check_tensor(name: str, kind: str, value: Tensor) -> None:
    if value.device.type != "cpu":
        raise ModelStateError(f"{kind} {name!r} lives on the device {value.device}; move the model with model.cpu()")
    if value.is_quantized or value.layout != torch.strided:
        raise ModelStateError(f"{kind} {name!r} is no dense tensor ({value.layout}, {value.dtype})")
    if not value.dtype.is_floating_point:
        return
    if kind == "parameter" and value.dtype != torch.float32:
        raise ModelStateError(f"{kind} {name!r} has dtype {value.dtype}; convert the model with model.float()")
    # The sum is finite unless an element is not, or a huge one overflows it: only then is each element looked at.
    if not bool(torch.isfinite(value.detach().sum())):
        _check_elements(name, kind, value.detach())


def _check_elements(name: str, kind: str, value: Tensor) -> None:
    nans, infinities = int(value.isnan().sum()), int(value.isinf().sum())
    # A buffer with minus infinity is the usual form of an attention mask: that is meant, NaN is not.
    if nans or (infinities and kind == "parameter") or bool((value == torch.inf).any()):
        raise ModelStateError(
            f"{kind} {name!r} holds {nans} NaN and {infinities} infinite of {value.numel()} values; "
            "the checkpoint is damaged or training diverged"
        )


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what runs of ``model`` within this context leave in its attributes.

    Detectors keep the anchors of the last size, others masks or tables. What a trace leaves there are tensors without
    values and sizes without numbers, with which neither another trace nor the model itself could go on.
    """
    modules = [module.__dict__ for module in model.modules()]
    kept = [(attributes, dict(attributes)) for attributes in modules]
    kept += [(value, dict(value)) for each in modules for value in each.values() if type(value) in _DICTS]
    lists = [(value, list(value)) for each in modules for value in each.values() if type(value) is list]
    try:
        yield
    finally:
        for mapping, entries in kept:
            mapping.clear()
            mapping.update(entries)
        for sequence, items in lists:
            sequence[:] = items


_DICTS = (dict, OrderedDict)
