"""Networks for tests: architectures with random weights whose batch-norm statistics fit their activations."""

from __future__ import annotations

import torch
from torch import nn


def settle_batch_norm(model: nn.Module, inputs: list[torch.Tensor]) -> nn.Module:
    """Let every batch norm measure its input's statistics on ``inputs``; returns ``model`` in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    # Only batch norm may behave as in training: dropout stays off.
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for batch in inputs:
            model(batch)
    return model.eval()


def pytorchcv_network(name: str, size: int = 64, batch: int = 8) -> nn.Module:
    """An architecture of pytorchcv with seeded random weights and settled batch norm."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    # By default this one reads positions out of its maps with int(), which no exporter can follow.
    options: dict[str, object] = {"return_heatmap": True} if name.startswith("simplepose") else {}
    if name.startswith("pspnet"):
        options["in_size"] = (size, size)
    model = get_model(name, pretrained=False, **options)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(batch, 3, size, size, generator=generator) for _ in range(2)]
    return settle_batch_norm(model, inputs)


def sqnr_db(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """Signal to noise in decibels over all elements."""
    wanted, got = wanted.detach(), got.detach()
    noise = (wanted - got).double().square().sum().clamp_min(1e-30)
    return float(10 * torch.log10(wanted.double().square().sum() / noise))
