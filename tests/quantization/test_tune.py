"""Tuning against numerical derivatives, the float network on new inputs, and other numbers of threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant import ActivationScheme, Recipe, WeightScheme
from kvant.capture import Executor, capture
from kvant.format import to_bytes
from kvant.quantization import tune
from kvant.quantization.parts import Parts
from networks import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 24, 1), nn.ReLU(),
        nn.Conv2d(24, 24, 3, 1, 1), nn.Hardswish(), nn.Conv2d(24, 8, 1),
    )  # fmt: skip
    return net.eval()


def pictures(count: int, size: int = 32, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(count, 3, size // 4, size // 4, generator=generator)
    return [nn.functional.interpolate(one[None], scale_factor=4.0, mode="bilinear") for one in smooth]


def test_rounding_passes_the_gradient_and_the_scale_learns_as_lsq_has_it() -> None:
    """Esser et al. 2020, equation 3: inside, the rounded minus the exact quotient; outside, the end."""
    values = torch.tensor([-9.0, -1.26, -0.1, 0.0, 0.4, 1.3, 9.0], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    rounded = tune._Round.apply(values, scale, -4, 5)
    assert rounded.tolist() == [-2.0, -1.5, 0.0, 0.0, 0.5, 1.5, 2.5]
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    (rounded * weight).sum().backward()
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]
    quotient = values.detach() / 0.5
    inside = (quotient >= -4.5) & (quotient <= 5.5)
    by_scale = torch.where(inside, torch.round(quotient) - quotient, torch.round(quotient).clamp(-4, 5))
    assert scale.grad.item() == pytest.approx(float((by_scale * weight).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "activations", "gain"),
    [
        (WeightScheme(bits=4), ActivationScheme(), 1.0),
        (WeightScheme(bits=2), ActivationScheme(), 1.0),
        (WeightScheme(bits=4, form="asymmetric"), ActivationScheme(bits=4), 0.3),
        (WeightScheme(bits=4, form="codebook"), ActivationScheme(), 0.3),
        (WeightScheme(bits=3, granularity="group", group=8), ActivationScheme(form="symmetric"), 0.1),
    ],
    ids=str,
)
def test_it_lowers_the_noise_on_new_pictures(
    weights: WeightScheme, activations: ActivationScheme, gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, data, new = network(), pictures(48), pictures(8, seed=2)
    monkeypatch.setattr(tune, "STEPS", 120)
    recipe = Recipe(weights, activations, target_sqnr=None, effort="best", compensate=False)
    tuned = kvant.quantize(net, data[0], calibration=data, recipe=recipe)
    monkeypatch.setattr(tune, "LEAST_STEPS", 10**9)  # more than there ever are: nothing is tuned
    plain = kvant.quantize(net, data[0], calibration=data, recipe=recipe)

    def noise(model: kvant.QuantizedModel) -> float:
        return float(np.mean([sqnr_db(net(one).detach(), model(one)) for one in new]))

    assert noise(tuned) > noise(plain) + gain
    assert len(to_bytes(tuned.graph)) == pytest.approx(len(to_bytes(plain.graph)), rel=0.05)


@pytest.mark.parametrize(("lost", "steps"), [(-100.0, 6), (100.0, 60)])
def test_what_loses_much_by_the_first_steps_gets_no_more(
    lost: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, step = [], tune._Learner.step
    monkeypatch.setattr(tune, "STEPS", 60)
    monkeypatch.setattr(tune, "LOST_DB", lost)
    monkeypatch.setattr(tune._Learner, "step", lambda self, *given: (done.append(1), step(self, *given)))
    net, data = network(), pictures(16)
    recipe = Recipe(WeightScheme(bits=4), target_sqnr=None, effort="best")
    model = kvant.quantize(net, data[0], calibration=data, recipe=recipe)
    assert len(done) == steps
    assert len([entry for entry in model.decisions if entry.step == "tuning"]) == 1


def test_powers_of_two_stay_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "STEPS", 60)
    net, data = network(), pictures(24)
    recipe = Recipe(
        WeightScheme(form="power_of_two"), ActivationScheme(form="power_of_two"), target_sqnr=None, effort="best"
    )
    model = kvant.quantize(net, data[0], calibration=data, recipe=recipe)
    scales = [
        scale
        for type in model.graph.types.values()
        if type.quantization is not None
        for scale in type.quantization.scale
    ]
    assert scales and all(np.frexp(scale)[0] == 0.5 for scale in scales)


def test_the_file_is_the_same_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "STEPS", 60)
    net, data = network(), pictures(24)
    recipe, files, before = Recipe(WeightScheme(bits=4), effort="best"), set(), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            files.add(to_bytes(kvant.quantize(net, data[0], calibration=data, recipe=recipe).graph))
    finally:
        torch.set_num_threads(before)
    assert len(files) == 1


def test_directions_that_were_wished_for_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "STEPS", 60)
    net, data = network(), pictures(16)
    recipe = Recipe(WeightScheme(bits=4, rounding="floor"), target_sqnr=None, equalize=False)
    plain, tuned = (
        kvant.quantize(net, data[0], calibration=data, recipe=replace(recipe, effort=effort))
        for effort in ("default", "best")
    )
    mine, other = (
        {name: value for name, value in model.graph.constants.items() if value.dtype == np.int8}
        for model in (plain, tuned)
    )
    assert mine and all((other[name] == value).all() for name, value in mine.items())


def test_parts_are_taken_where_the_network_takes_them() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], 3, -1) @ torch.ones(320 * 288, 1)

    large = [torch.rand(1, 3, 320, 288)]
    free = capture(nn.Conv2d(3, 4, 3).eval(), (large[0],), {})
    parts = Parts(Executor(free), large)
    assert parts.middle(large)[0].shape == (1, 3, 256, 256)
    assert (parts.middle(large)[0] == large[0][:, :, 32:288, 0:256]).all()
    generator = torch.Generator().manual_seed(0)
    starts = {parts.random(large, generator)[0].storage_offset() // 288 for _ in range(50)}
    assert starts == {0, 32, 64}
    small = [torch.rand(1, 3, 64, 300)]
    assert parts.middle(small)[0].shape == (1, 3, 64, 256)
    whole = capture(Fixed().eval(), (large[0],), {})
    assert Parts(Executor(whole), large).middle(large) is large
