"""Published architectures: captured, quantized, and close to float; the same bits from both back ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kvant
from kvant.runtime import QuantizedModel
from networks import pytorchcv_network, sqnr_db

FAST = [("resnet18", 224), ("squeezenet_v1_1", 224)]
SLOW = [
    ("resnet50", 224), ("bn_vgg11", 224), ("mobilenet_w1", 224), ("mobilenetv2_w1", 224),
    ("mobilenetv3_large_w1", 224), ("efficientnet_b0", 224), ("densenet121", 224), ("shufflenet_g1_w1", 224),
    ("shufflenetv2_w1", 224), ("hrnet_w18_small_v1", 224), ("inceptionv3", 299), ("ghostnet", 224),
    ("sepreresnet10", 224), ("dpn68", 224), ("xception", 299), ("lwopenpose2d_mobilenet_cmupan_coco", 128),
    ("pspnet_resnetd50b_voc", 240), ("simplepose_resnet18_coco", 256),
]  # fmt: skip


def check(name: str, size: int) -> None:
    model = pytorchcv_network(name, size, batch=8)
    generator = torch.Generator().manual_seed(2)
    data = [torch.randn(1, 3, size, size, generator=generator) for _ in range(12)]
    quantized = kvant.quantize(model, data[0], calibration=data[:8])
    wanted, got = [], []
    with torch.no_grad():
        for x in data[8:]:
            wanted.append(_flat(model(x)))
            got.append(_flat(quantized(x)))
    for one, two in zip(zip(*wanted, strict=True), zip(*got, strict=True), strict=True):
        assert sqnr_db(torch.cat(one), torch.cat(two)) >= 20
    if size <= 128:
        reference = QuantizedModel(quantized.graph, backend="reference")
        for one, two in zip(_flat(reference(data[7].numpy())), _flat(quantized(data[7].numpy())), strict=True):
            np.testing.assert_array_equal(one, two)


def _flat(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


@pytest.mark.parametrize(("name", "size"), FAST)
def test_fast_architectures(name: str, size: int) -> None:
    check(name, size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), SLOW)
def test_slow_architectures(name: str, size: int) -> None:
    check(name, size)
