"""Compensated rounding against brute force and against rounding to nearest, on inputs that were not fitted."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from kvant.graph import Node, ops
from kvant.quantization import WeightScheme
from kvant.quantization.rounding import PRODUCTS, Moments, _rows, compensated, gather
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
    weight = np.zeros((4, 3, 3, 2), np.float32)
    x = torch.randn(1, 6, 9, 8, generator=torch.Generator().manual_seed(6))
    node = Node(op, ("x", "w"), "y")
    found = gather(node, weight, [(x, x)])
    padded = torch.nn.functional.pad(x, (0, 1, 1, 1))
    columns = torch.nn.functional.unfold(padded, (3, 2), (1, 2), 0, (2, 1))[0].reshape(2, 18, -1)
    assert found.positions == columns.shape[2]
    columns = columns - columns.mean(2, keepdim=True)
    torch.testing.assert_close(found.own, (columns @ columns.transpose(1, 2)).double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_what_outputs_lack_is_what_the_layer_makes_of_the_inputs_differences(groups: int) -> None:
    op = ops.Conv((1, 1), (1, 1), (1, 1), (1, 1), groups)
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(12, 6 // groups, 3, 3, generator=generator)
    exact, rough = (torch.randn(2, 6, 9, 8, generator=generator) for _ in range(2))
    found = gather(Node(op, ("x", "w"), "y"), weight.numpy(), [(exact, rough)])
    lacks = torch.nn.functional.conv2d(exact - rough, weight, padding=1, groups=groups)
    lacks = lacks.transpose(0, 1).reshape(groups, 12 // groups, -1)
    columns = torch.nn.functional.unfold(rough, (3, 3), padding=1).transpose(0, 1).reshape(groups, 54 // groups, -1)
    lacks, columns = (each - each.mean(2, keepdim=True) for each in (lacks, columns))
    torch.testing.assert_close(found.own, (columns @ columns.mT).double(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.lack, (lacks @ columns.mT).double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("value", [0.3, 1234.5])
def test_inputs_that_never_change_are_rounded_to_nearest(groups: int, value: float) -> None:
    """Such as the signs of a sigmoid: what float32 leaves of their variance is no moment, and may be negative."""
    op = ops.Conv((1, 1), (0, 0), (0, 0), (1, 1), groups)
    weight = torch.randn(12, 6 // groups, 1, 1, generator=torch.Generator().manual_seed(7)).numpy()
    rough = torch.full((3, 6, 19, 23), value) * torch.tensor([1.0, 0.7, 3.1, 0.1, 0.9, 1.3])[:, None, None]
    exact = rough + 0.01 * torch.randn(3, 6, 19, 23, generator=torch.Generator().manual_seed(8))
    found = gather(Node(op, ("x", "w"), "y"), weight, [(exact[:1], rough[:1]), (exact[1:], rough[1:])])
    assert not found.own.any() and not found.lack.any()
    nearest = quantize_weight(weight, None, WeightScheme(4))
    np.testing.assert_array_equal(compensated(weight, nearest, found).values, nearest.values)


@pytest.mark.parametrize(("height", "width"), [(46, 54), (300, 7), (7, 300), (500, 500), (11, 12), (3, 3)])
@pytest.mark.parametrize("wanted", [128, 1000])
def test_positions_are_thinned_to_as_many_as_wanted_or_some_more(height: int, width: int, wanted: int) -> None:
    node = Node(ops.Conv((1, 1), (0, 0), (0, 0), (1, 1), 1), ("x", "w"), "y")
    found = _rows(node, np.zeros((2, 4, 1, 1), np.float32), wanted, torch.zeros(1, 4, height, width)).shape[1]
    assert min(wanted, height * width) <= found <= 1.3 * wanted


@pytest.mark.parametrize("period", [2, 3, 4])
def test_no_phase_of_an_enlarged_map_is_missed(period: int) -> None:
    """Each of the positions that lie ``period`` apart is met about as often as the others."""
    node = Node(ops.Conv((1, 1), (0, 0), (0, 0), (1, 1), 1), ("x", "w"), "y")
    phases = (torch.arange(64) % period)[:, None] * period + torch.arange(96) % period
    x = torch.nn.functional.one_hot(phases, period**2).movedim(-1, 0)[None].float()
    found = _rows(node, np.zeros((1, period**2, 1, 1), np.float32), 64 * 96 // period**2, x)[0].mean(0)
    assert found.min() > 0.3 / period**2


def test_rows_of_linear_layers_are_thinned_too() -> None:
    x = torch.randn(2, 5000, 512, generator=torch.Generator().manual_seed(8))
    found = gather(Node(ops.Linear(), ("x", "w"), "y"), np.zeros((3, 512), np.float32), [(x, x)])
    assert found.positions == max(PRODUCTS // 512**2, 12 * 512)
