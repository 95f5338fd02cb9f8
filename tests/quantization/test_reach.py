"""Values that are tiny or huge: they work, or are refused by an error that says which and why."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import kvant
from kvant.quantization import Recipe
from networks import sqnr_db

FAST = Recipe(effort="fast")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False)
    return nn.Sequential(*layers).eval()


def images(factor: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [factor * torch.randn(2, 3, 12, 12, generator=generator) for _ in range(6)]


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e6, 1e15])
def test_inputs_of_any_sane_magnitude_keep_their_accuracy(factor: float) -> None:
    model, data = network(), images(factor)
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=FAST)
    with torch.no_grad():
        wanted = model(data[1])
    assert sqnr_db(wanted.double() / factor, quantized(data[1]).double() / factor) > 30


@pytest.mark.parametrize("factor", [1e-30, 1e-18, 1e20, 1e36])
def test_inputs_that_no_scale_can_stand_for_are_refused(factor: float) -> None:
    data = images(factor)
    with pytest.raises(kvant.CalibrationError, match=r"input 'input' reaches [0-9.]+e[+-]\d+ on calibration data"):
        kvant.quantize(network(), data[0], calibration=data, recipe=FAST)


@pytest.mark.parametrize(("factor", "what"), [(1e-30, "output '2'"), (1e20, "activation '1'")])
def test_weights_that_make_such_values_are_refused(factor: float, what: str) -> None:
    model, data = network(), images(1)
    with torch.no_grad():
        model[0].weight.mul_(factor)
    with pytest.raises(kvant.CalibrationError, match=what):
        kvant.quantize(model, data[0], calibration=data, recipe=FAST)


def test_a_branch_that_died_harms_nothing() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x).relu() + self.two(x)

    torch.manual_seed(0)
    model, data = Residual().eval(), images(1)
    with torch.no_grad():
        for parameter in model.one.parameters():
            parameter.mul_(1e-35)
        wanted = model(data[0])
    assert sqnr_db(wanted, kvant.quantize(model, data[0], calibration=data, recipe=FAST)(data[0])) > 30


def test_outputs_that_are_mostly_noise_are_said_loudly() -> None:
    model, data = network(), images(1)
    ternary = Recipe(
        effort="fast", weights=kvant.WeightScheme(bits=1), activations=kvant.ActivationScheme(bits=1),
        target_sqnr=None, correct_bias=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"dB of signal to noise: they are mostly noise") as caught:
        kvant.quantize(model, data[0], calibration=data, recipe=ternary)
    assert [each.filename for each in caught if "mostly noise" in str(each.message)] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kvant.quantize(model, data[0], calibration=data, recipe=FAST)
