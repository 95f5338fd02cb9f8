"""Learned rounding against rounding to nearest, compensated rounding and brute force, on new inputs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant import Recipe, WeightScheme
from kvant.format import to_bytes
from kvant.quantization.learned import learned
from kvant.quantization.rounding import compensated
from kvant.quantization.weights import QuantizedWeight, quantize_weight
from networks import settle_batch_norm, sqnr_db

from .test_rounding import error, inputs, moments

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEMES = [
    WeightScheme(bits=4), WeightScheme(bits=2), WeightScheme(bits=4, form="asymmetric"),
    WeightScheme(bits=4, form="power_of_two"),
    WeightScheme(bits=4, granularity="group", group=16),
    WeightScheme(bits=4, form="apot"), WeightScheme(bits=3, form="codebook"),
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_beats_nearest_and_keeps_up_with_compensated(scheme: WeightScheme) -> None:
    weight = np.random.default_rng(1).normal(size=(16, 48)).astype(np.float32)
    seen, new = inputs(2000, 48, 1), inputs(500, 48, 2)
    nearest = quantize_weight(weight, None, scheme)
    found = learned(weight, nearest, moments(weight, seen, seen))
    other = compensated(weight, nearest, moments(weight, seen, seen))
    assert found.values.dtype == nearest.values.dtype and (found.scale == nearest.scale).all()
    lower, upper = nearest.grid.neighbours(torch.from_numpy(weight / nearest.scale[:, None]))
    values = found.values.astype(np.float64)
    assert ((values == lower.numpy()) | (values == upper.numpy()) | (found.values == nearest.values)).all()
    assert error(weight, found, new, new) < 0.3 * error(weight, nearest, new, new)
    assert error(weight, found, new, new) < 2 * error(weight, other, new, new)


def test_it_comes_close_to_the_best_of_all_roundings() -> None:
    """Every choice of rounding eight weights up or down, tried: 256 in all."""
    weight = np.random.default_rng(3).normal(size=(1, 8)).astype(np.float32)
    seen = inputs(1000, 8, 5)
    scale = np.array([0.2], np.float32)
    nearest = QuantizedWeight(np.rint(weight / scale).astype(np.int8), scale)
    found = error(weight, learned(weight, nearest, moments(weight, seen, seen)), seen, seen)
    below = np.floor(weight / scale)
    errors = sorted(
        error(weight, QuantizedWeight((below + np.array([up])).astype(np.int8), scale), seen, seen)
        for up in product((0, 1), repeat=8)
    )
    assert found <= errors[12]


def small() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 24), (24, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return settle_batch_norm(nn.Sequential(*layers, nn.Conv2d(32, 6, 1)), [pictures(32, 5)])


def pictures(count: int, seed: int) -> torch.Tensor:
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


def test_four_bits_of_a_network_are_better_and_the_same_each_time() -> None:
    net, data, new = small(), pictures(16, 1), pictures(16, 2)

    def quantized(rounding: str) -> kvant.QuantizedModel:
        scheme = WeightScheme(bits=4, rounding=rounding)  # type: ignore[arg-type]
        recipe = Recipe(scheme, target_sqnr=None, compensate=False, fine_weights=False)
        return kvant.quantize(net, data[:1], calibration=[data], recipe=recipe)

    first, second = quantized("learned"), quantized("learned")
    assert to_bytes(first.graph) == to_bytes(second.graph)
    assert sqnr_db(net(new), first(new)) > sqnr_db(net(new), quantized("half_even")(new)) + 1.5
