"""Operators over depth, height and width, as video and medical networks have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kvant
from kvant.runtime import QuantizedModel
from networks import sqnr_db

from .compare import check, example

VOLUME, OTHER = (1, 4, 6, 8, 10), (2, 4, 7, 12, 9)
OPERATORS: dict[str, Callable[[], nn.Module | Callable[[Tensor], Tensor]]] = {
    "plain": lambda: nn.Conv3d(4, 6, 3),
    "stride, padding": lambda: nn.Conv3d(4, 6, (3, 1, 2), stride=(2, 1, 3), padding=(1, 0, 2)),
    "dilation": lambda: nn.Conv3d(4, 6, 3, dilation=(2, 1, 2), padding=2),
    "groups": lambda: nn.Conv3d(4, 6, 3, groups=2, bias=False),
    "depthwise": lambda: nn.Conv3d(4, 8, (3, 5, 3), padding=(1, 2, 1), groups=4),
    "same": lambda: nn.Conv3d(4, 6, (3, 4, 2), padding="same"),
    "patches": lambda: nn.Conv3d(4, 6, (2, 4, 4), stride=(2, 4, 4)),
    "a point": lambda: nn.Conv3d(4, 6, 1),
    "transposed": lambda: nn.ConvTranspose3d(4, 6, 2, stride=2),
    "transposed, stride, padding": lambda: nn.ConvTranspose3d(4, 6, 3, 2, padding=1, output_padding=(1, 0, 1)),
    "transposed, more padding than kernel": lambda: nn.ConvTranspose3d(4, 6, (1, 3, 3), (2, 1, 1), padding=1),
    "transposed, groups, dilation": lambda: nn.ConvTranspose3d(4, 6, 3, 1, groups=2, dilation=(2, 1, 1)),
    "max": lambda: nn.MaxPool3d(2),
    "max, stride, padding": lambda: nn.MaxPool3d((3, 2, 3), (1, 2, 2), padding=1, ceil_mode=True),
    "average": lambda: nn.AvgPool3d((2, 3, 2), ceil_mode=True),
    "average, padding": lambda: nn.AvgPool3d(3, 2, padding=1, count_include_pad=False),
    "adaptive average": lambda: nn.AdaptiveAvgPool3d((2, 3, 1)),
    "adaptive average to one": lambda: nn.AdaptiveAvgPool3d(1),
    "adaptive max": lambda: nn.AdaptiveMaxPool3d(2),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "nearest size": lambda: lambda x: F.interpolate(x, (5, 12, 7)),
    "trilinear": lambda: nn.Upsample(scale_factor=(2, 1, 2), mode="trilinear"),
    "trilinear, corners": lambda: lambda x: F.interpolate(x, (9, 12, 7), mode="trilinear", align_corners=True),
    "local response": lambda: nn.LocalResponseNorm(3),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_volumes(name: str) -> None:
    torch.manual_seed(0)
    graph = check(OPERATORS[name](), [example(VOLUME)], [example(OTHER, 1)])
    assert graph.inputs[0].shape[0] == ("batch",)


def test_a_network_of_volumes_is_quantized() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 8, 3, 2, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 8, 3, padding=1),
        nn.ReLU(), nn.ConvTranspose3d(8, 8, 2, 2), nn.Upsample(scale_factor=2, mode="trilinear"), nn.Conv3d(8, 2, 1),
    ).eval()  # fmt: skip
    data = [torch.randn(1, 1, 8, 16, 16) for _ in range(8)]
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=kvant.Recipe(effort="fast"))
    assert {node.op.kind for node in quantized.graph.nodes} >= {"conv", "convtranspose"}
    for x in (data[0], torch.randn(2, 1, 16, 8, 24)):
        with torch.no_grad():
            wanted = model(x)
        got = quantized(x)
        assert sqnr_db(wanted, got) >= 25
        assert torch.equal(got, QuantizedModel(quantized.graph, backend="reference")(x))
