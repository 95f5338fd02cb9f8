"""Compensated rounding against brute force and against rounding to nearest, on inputs that were not fitted."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from kvant.graph import Node, ops
from kvant.quantization import WeightScheme
from kvant.quantization.rounding import Moments, compensated, gather
from kvant.quantization.weights import QuantizedWeight, fine_weight, quantize_weight


def inputs(rows: int, size: int, seed: int) -> torch.Tensor:
    """Strongly correlated inputs that are not zero on average, as after a ReLU."""
    mixing = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(
        torch.randn(rows, 4, generator=generator) @ mixing + 0.1 * torch.randn(rows, size, generator=generator)
    )


def moments(exact: torch.Tensor, rough: torch.Tensor) -> Moments:
    return Moments((rough.T @ rough).double()[None], (exact.T @ rough).double()[None], len(rough))


def error(weight: np.ndarray, quantized: QuantizedWeight, exact: torch.Tensor, rough: torch.Tensor) -> float:
    wanted, got = exact @ torch.from_numpy(weight).T, rough @ torch.from_numpy(quantized.dequantize()).T
    return float((wanted - got).square().mean())


@pytest.mark.parametrize("fine", [False, True])
def test_it_beats_rounding_to_nearest_on_new_inputs(fine: bool) -> None:
    weight = np.random.default_rng(1).normal(size=(16, 48)).astype(np.float32)
    seen, new = inputs(2000, 48, 1), inputs(500, 48, 2)
    nearest = fine_weight(weight) if fine else quantize_weight(weight, None, WeightScheme(range="minmax"))
    anew = compensated(weight, nearest, moments(seen, seen))
    assert anew.values.dtype == nearest.values.dtype and (anew.scale == nearest.scale).all()
    assert np.abs(anew.values.astype(int)).max() <= nearest.grid.high
    assert error(weight, anew, new, new) < 0.3 * error(weight, nearest, new, new)


def test_it_repairs_what_earlier_layers_lost() -> None:
    """The quantized network's inputs are 3 % too small: the weights make up for it."""
    weight = np.random.default_rng(2).normal(size=(8, 32)).astype(np.float32)
    seen, new = inputs(2000, 32, 3), inputs(500, 32, 4)
    nearest = quantize_weight(weight * np.float32(1.1), None, WeightScheme(range="minmax"))
    anew = compensated(weight, nearest, moments(seen, 0.97 * seen))
    plain = compensated(weight, nearest, moments(seen, seen))
    assert error(weight, anew, new, 0.97 * new) < 0.2 * error(weight, plain, new, 0.97 * new)


def test_it_comes_close_to_the_best_of_all_roundings() -> None:
    """Every choice of rounding four weights up or down, tried: 16 in all."""
    weight = np.random.default_rng(3).normal(size=(1, 4)).astype(np.float32)
    seen = inputs(1000, 4, 5)
    nearest = QuantizedWeight(np.zeros((1, 4), np.int8), np.array([0.2], np.float32))
    found = error(weight, compensated(weight, nearest, moments(seen, seen)), seen, seen)
    below = np.floor(weight / nearest.scale)
    errors = [
        error(weight, QuantizedWeight((below + np.array([up])).astype(np.int8), nearest.scale), seen, seen)
        for up in product((0, 1), repeat=4)
    ]
    assert found <= sorted(errors)[3]


def test_moments_are_those_of_the_columns_a_convolution_reads() -> None:
    op = ops.Conv((2, 1), (1, 0), (1, 1), (1, 2), 2)
    weight = np.zeros((4, 3, 3, 2), np.float32)
    x = torch.randn(1, 6, 9, 8, generator=torch.Generator().manual_seed(6))
    node = Node(op, ("x", "w"), "y")
    found = gather(node, weight, [(x, x)])
    padded = torch.nn.functional.pad(x, (0, 1, 1, 1))
    columns = torch.nn.functional.unfold(padded, (3, 2), (1, 2), 0, (2, 1))[0].reshape(2, 18, -1)
    assert found.positions == columns.shape[2]
    columns = columns - columns.mean(2, keepdim=True)
    torch.testing.assert_close(found.own, (columns @ columns.transpose(1, 2)).double(), rtol=1e-5, atol=1e-4)
