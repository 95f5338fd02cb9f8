"""Finer weights: where they go, what they bring, and that networks that do well without get none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant.capture import capture, prepare
from kvant.graph import ops
from kvant.quantization import WeightScheme
from kvant.quantization.progress import Progress
from kvant.quantization.refine import weight_noise
from kvant.quantization.sensitivity import Probe
from kvant.quantization.simulate import Plan
from kvant.quantization.weights import fine_weight, quantize_weight
from kvant.quantization.yardstick import Yardstick, decibels
from networks import settle_batch_norm, sqnr_db


def chain(depth: int, spread: float = 0.0) -> nn.Module:
    """Depthwise-separable layers; ``spread`` makes channels of a weight differ by orders of magnitude."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, padding=1)]
    for _ in range(depth):
        layers += [
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
            nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24),
        ]  # fmt: skip
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and spread:
            with torch.no_grad():
                module.weight[:, 0] *= 10.0**spread
                module.weight[:, 0] -= module.weight[:, 0].mean()
    return settle_batch_norm(model, [torch.randn(8, 3, 32, 32)])


def pictures(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(1, 3, 32, 32, generator=generator) for _ in range(count)]


def weight_dtypes(model: kvant.QuantizedModel) -> set[str]:
    return {model.graph.types[node.inputs[1]].dtype for node in model.graph.nodes if isinstance(node.op, ops.WEIGHTED)}


def test_finer_weights_reach_a_target_that_int8_weights_miss() -> None:
    model, data = chain(6), pictures(10)
    coarse = kvant.quantize(
        model, data[0], calibration=data[:8], recipe=kvant.Recipe(target_sqnr=50.0, fine_weights=False)
    )
    fine = kvant.quantize(model, data[0], calibration=data[:8], recipe=kvant.Recipe(target_sqnr=50.0))
    assert weight_dtypes(coarse) == {"int8"} and "int16" in weight_dtypes(fine)
    with torch.no_grad():
        wanted = model(data[9])
    assert sqnr_db(wanted, coarse(data[9])) < 45
    assert sqnr_db(wanted, fine(data[9])) > 48


def test_a_network_that_does_well_keeps_int8_weights() -> None:
    model, data = chain(2), pictures(8)
    assert weight_dtypes(kvant.quantize(model, data[0], calibration=data)) == {"int8"}


class Weightless(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x) * x


def test_a_network_without_weights_has_none_to_refine() -> None:
    data = pictures(4)
    quantized = kvant.quantize(Weightless().eval(), data[0], calibration=data, recipe=kvant.Recipe(target_sqnr=90.0))
    assert sqnr_db(Weightless()(data[1]), quantized(data[1])) > 60


def test_fine_weights_survive_the_file(tmp_path) -> None:
    model, data = chain(3), pictures(6)
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=kvant.Recipe(target_sqnr=55.0))
    assert "int16" in weight_dtypes(quantized)
    quantized.save(tmp_path / "net.kvant")
    for backend in ("native", "reference"):
        loaded = kvant.load(tmp_path / "net.kvant", backend=backend)
        np.testing.assert_array_equal(loaded(data[0].numpy()), quantized(data[0].numpy()))


def test_fine_weights_are_36_db_finer() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 16, 3, 3)).astype(np.float32)
    coarse, fine = quantize_weight(weight, None, WeightScheme(range="minmax")), fine_weight(weight)
    assert fine.values.dtype == np.int16 and np.abs(fine.values).max() == 8191
    power = [np.square(found.dequantize() - weight).mean() for found in (coarse, fine)]
    assert 10 * np.log10(power[0] / power[1]) == pytest.approx(20 * np.log10(8191 / 127), abs=0.5)


def test_predicted_noise_is_what_rounding_one_layer_does() -> None:
    graph = prepare(capture(chain(3).eval(), (pictures(1)[0],), {}))
    names = [node.output for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)]
    inputs = {node.output: node.inputs for node in graph.nodes}
    exact = {name: fine_weight(graph.constants[inputs[name][1]]) for name in names}
    rough = {
        name: quantize_weight(graph.constants[inputs[name][1]], None, WeightScheme(range="minmax")) for name in names
    }
    biases = {name: graph.constants[inputs[name][2]] for name in names if len(inputs[name]) > 2}
    yardstick = Yardstick(graph, [[picture] for picture in pictures(24)])
    types = {name: graph.types[name] for name in graph.activations()}  # float: nothing is rounded but weights
    predicted = weight_noise(Plan(graph, types, rough, biases), yardstick, Progress(False), Probe())
    for name in names:
        plan = Plan(graph, types, {**exact, name: rough[name]}, biases)
        found = yardstick.measure_whole(plan)
        assert decibels(predicted[name]) == pytest.approx(found, abs=4)
