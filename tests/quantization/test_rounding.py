"""Compensated rounding against brute force and against rounding to nearest, on inputs that were not fitted."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from kvant.graph import Node, ops
from kvant.quantization import WeightScheme
from kvant.quantization.rounding import LEAST_POSITIONS, Moments, compensated, gather
from kvant.quantization.weights import QuantizedWeight, fine_weight, quantize_weight


def inputs(rows: int, size: int, seed: int) -> torch.Tensor:
    """Strongly correlated inputs that are not zero on average, as after a ReLU."""
    mixing = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(
        torch.randn(rows, 4, generator=generator) @ mixing + 0.1 * torch.randn(rows, size, generator=generator)
    )


def moments(weight: np.ndarray, exact: torch.Tensor, rough: torch.Tensor) -> Moments:
    lack = torch.from_numpy(weight) @ (exact - rough).T @ rough
    return Moments((rough.T @ rough).double()[None], lack.double()[None], len(rough))


def error(weight: np.ndarray, quantized: QuantizedWeight, exact: torch.Tensor, rough: torch.Tensor) -> float:
    wanted, got = exact @ torch.from_numpy(weight).T, rough @ torch.from_numpy(quantized.dequantize()).T
    return float((wanted - got).square().mean())


@pytest.mark.parametrize("fine", [False, True])
def test_it_beats_rounding_to_nearest_on_new_inputs(fine: bool) -> None:
    weight = np.random.default_rng(1).normal(size=(16, 48)).astype(np.float32)
    seen, new = inputs(2000, 48, 1), inputs(500, 48, 2)
    nearest = fine_weight(weight) if fine else quantize_weight(weight, None, WeightScheme(range="minmax"))
    anew = compensated(weight, nearest, moments(weight, seen, seen))
    assert anew.values.dtype == nearest.values.dtype and (anew.scale == nearest.scale).all()
    assert np.abs(anew.values.astype(int)).max() <= nearest.grid.high
    assert error(weight, anew, new, new) < 0.3 * error(weight, nearest, new, new)


def test_it_repairs_what_earlier_layers_lost() -> None:
    """The quantized network's inputs are 3 % too small: the weights make up for it."""
    weight = np.random.default_rng(2).normal(size=(8, 32)).astype(np.float32)
    seen, new = inputs(2000, 32, 3), inputs(500, 32, 4)
    nearest = quantize_weight(weight * np.float32(1.1), None, WeightScheme(range="minmax"))
    anew = compensated(weight, nearest, moments(weight, seen, 0.97 * seen))
    plain = compensated(weight, nearest, moments(weight, seen, seen))
    assert error(weight, anew, new, 0.97 * new) < 0.2 * error(weight, plain, new, 0.97 * new)


def test_it_comes_close_to_the_best_of_all_roundings() -> None:
    """Every choice of rounding four weights up or down, tried: 16 in all."""
    weight = np.random.default_rng(3).normal(size=(1, 4)).astype(np.float32)
    seen = inputs(1000, 4, 5)
    nearest = QuantizedWeight(np.zeros((1, 4), np.int8), np.array([0.2], np.float32))
    found = error(weight, compensated(weight, nearest, moments(weight, seen, seen)), seen, seen)
    below = np.floor(weight / nearest.scale)
    errors = [
        error(weight, QuantizedWeight((below + np.array([up])).astype(np.int8), nearest.scale), seen, seen)
        for up in product((0, 1), repeat=4)
    ]
    assert found <= sorted(errors)[3]


def test_moments_are_those_of_the_columns_a_convolution_reads() -> None:
    op = ops.Conv((2, 1), (1, 0), (1, 1), (1, 2), 2)
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(4, 3, 3, 2, generator=generator)
    exact = torch.randn(2, 6, 9, 8, generator=generator)
    rough = exact + 0.1 * torch.randn(2, 6, 9, 8, generator=generator)

    def padded(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, 1, 1, 1))

    output = torch.nn.functional.conv2d(padded(exact), weight, torch.ones(4), (2, 1), 0, (1, 2), 2)
    pairs = [(output[at : at + 1], rough[at : at + 1]) for at in range(2)]
    found = gather(Node(op, ("x", "w"), "y"), weight.numpy(), pairs)
    true, got = (
        torch.nn.functional.unfold(padded(x), (3, 2), (1, 2), 0, (2, 1)).transpose(0, 1).reshape(2, 18, -1).double()
        for x in (exact, rough)
    )
    assert found.positions == got.shape[2]
    true, got = (columns - columns.mean(2, keepdim=True) for columns in (true, got))
    lack = weight.reshape(2, 2, 18).double() @ (true - got) @ got.transpose(1, 2)
    torch.testing.assert_close(found.own, got @ got.transpose(1, 2), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.lack, lack, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 96, 80), (2, 30, 40), (1, 1, 5000), (1, 400, 7)])
def test_positions_are_thinned_to_about_as_many_as_there_are_weights(shape: tuple[int, int, int]) -> None:
    """Which ones, outputs and inputs agree on: with a layer that copies its input, nothing lacks."""
    batch, height, width = shape
    x = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(7))
    node = Node(ops.Conv((1, 1), (0, 0), (0, 0), (1, 1), 1), ("x", "w"), "y")
    found = gather(node, np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), [(x, x)])
    assert LEAST_POSITIONS <= found.positions <= 2 * LEAST_POSITIONS
    assert float(found.lack.abs().max()) < 1e-3 * float(found.own.abs().max())
