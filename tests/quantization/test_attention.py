"""Transformers on integers: accuracy against float, dynamic sequence length, the same bits from both back ends."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import kvant
from kvant.runtime import QuantizedModel
from networks import sqnr_db


class SmallVit(nn.Module):
    """Patches, a class token, a position embedding, an encoder, a head."""

    def __init__(self, width: int = 48, patches: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, patches + 1, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 96, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.encoder(x))[:, 0])


def same_bits(quantized: QuantizedModel, x: np.ndarray) -> None:
    reference = QuantizedModel(quantized.graph, backend="reference")
    np.testing.assert_array_equal(reference(x), QuantizedModel(quantized.graph, backend="native")(x))


def test_small_vision_transformer() -> None:
    torch.manual_seed(0)
    model = SmallVit().eval()
    data = [torch.randn(2, 3, 32, 32) for _ in range(8)]
    quantized = kvant.quantize(model, data[0], calibration=data[:6])
    for x in data[6:]:
        assert sqnr_db(model(x), quantized(x)) > 20
    same_bits(quantized, data[7].numpy())


def test_transformer_encoder_at_other_lengths() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    data = [torch.randn(2, 12, 32) for _ in range(8)]
    quantized = kvant.quantize(model, data[0], calibration=data[:6])
    assert sqnr_db(model(data[7]), quantized(data[7])) > 20
    longer = torch.randn(3, 20, 32)
    assert sqnr_db(model(longer), quantized(longer)) > 20
    same_bits(quantized, longer.numpy())
