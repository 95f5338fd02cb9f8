"""Pictures as bytes and sound as 16-bit samples: the integers that callers have are the network's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kvant
from kvant.format import from_bytes, to_bytes
from kvant.graph import Quantization, TensorType
from kvant.quantization import ActivationScheme, Recipe
from kvant.runtime import QuantizedModel
from networks import sqnr_db

FAST = Recipe(effort="fast")
NCHW, NHWC = (2, 3, 16, 20), (2, 16, 20, 3)
BYTES = TensorType("uint8", Quantization((float(np.float32(1 / 255)),)))


class Net(nn.Module):
    """A small network behind what a user writes to prepare pictures."""

    def __init__(self, prepare: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prepare = prepare
        self.first, self.second = nn.Conv2d(channels, 8, 3, 2, 1), nn.Conv2d(8, 5, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.prepare(x)).relu())


def pictures(shape: tuple[int, ...], count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(count)]


def check(model: nn.Module, data: list[Tensor], *others: Tensor, least: float, recipe: Recipe = FAST) -> QuantizedModel:
    """Quantize, save, load, and run: both back ends give the same bits, near those of torch, and leave inputs alone."""
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=recipe)
    graph = from_bytes(to_bytes(quantized.graph)).graph
    native, reference = (QuantizedModel(graph, backend=name) for name in ("native", "reference"))
    for x in (data[0], *others):
        with torch.no_grad():
            wanted = model(x)
        given = x.clone()
        one, two = native(given), reference(given)
        assert torch.equal(given, x)
        np.testing.assert_array_equal(one.numpy(), two.numpy(), strict=True)
        assert one.shape == wanted.shape
        assert sqnr_db(wanted, one) >= least
    return quantized


@pytest.mark.parametrize(("shape", "prepare"), [
    (NCHW, lambda x: x.float() / 255), (NCHW, lambda x: x / 255), (NCHW, lambda x: x.to(torch.float32) * (1 / 255)),
    (NCHW, lambda x: x.type(torch.float32).div(255.0)), (NCHW, lambda x: x.flip(1).float() / 255),
    (NHWC, lambda x: x.permute(0, 3, 1, 2).float() / 255), (NHWC, lambda x: x.float().permute(0, 3, 1, 2) / 255),
    (NCHW, lambda x: F.pad(x, (1, 1, 1, 1)).float()[:, [2, 1, 0]] / 255),
])  # fmt: skip
def test_bytes_are_read_as_they_are(shape: tuple[int, ...], prepare: Callable[[Tensor], Tensor]) -> None:
    """No quantization, no table: a division by 255 is the scale of the input."""
    data = pictures(shape)
    smaller = data[1][:1, 2:, 4:] if shape == NHWC else data[1][:1, :, 2:, 4:]
    quantized = check(Net(prepare), data, data[1][:1], smaller.contiguous(), least=33)
    assert quantized.graph.inputs[0].type == BYTES
    kinds = [node.op.kind for node in quantized.graph.nodes]
    assert set(kinds) <= {"transpose", "gather", "pad", "conv", "dequantize"}
    assert kinds.count("dequantize") == 1


_MEAN = torch.tensor([0.45, 0.5, 0.4]).view(1, 3, 1, 1)


def _joined(x: Tensor) -> Tensor:
    place = torch.linspace(0, 4, x.shape[3]).expand(x.shape[0], 1, x.shape[2], x.shape[3])
    return torch.cat([x[:, :2].float() / 255, place], 1)


@pytest.mark.parametrize("prepare", [
    lambda x: (x.float() / 255 - _MEAN) / 0.25, lambda x: x.float() / 127.5 - 1, lambda x: x.float(),
    lambda x: F.interpolate(x.float() / 255, scale_factor=2, mode="bilinear"),
    lambda x: x.float() / 255 + x.float().mean((2, 3), keepdim=True) / 500, lambda x: x - 114.0,
    lambda x: F.max_pool2d(x.float(), 2) / 255, _joined,
])  # fmt: skip
def test_whatever_prepares_pictures(prepare: Callable[[Tensor], Tensor]) -> None:
    data = pictures(NCHW)
    check(Net(prepare), data, data[1][:1], least=25)


def test_default_effort_and_no_data() -> None:
    model, data = Net(lambda x: x.float() / 255), pictures(NCHW)
    check(model, data, least=33, recipe=Recipe())
    quantized = kvant.quantize(model, data[0], calibration=None)
    with torch.no_grad():
        assert sqnr_db(model(data[1]), quantized(data[1])) > 25


@pytest.mark.parametrize("recipe", [
    Recipe(effort="fast", activations=ActivationScheme(form="power_of_two"), target_sqnr=None),
    Recipe(effort="fast", arithmetic="float"), Recipe(effort="fast", wide=("*",)),
])  # fmt: skip
def test_schemes_that_want_something_else_get_it(recipe: Recipe) -> None:
    data = pictures(NCHW)
    quantized = check(Net(lambda x: x.float() / 255), data, least=20, recipe=recipe)
    if recipe.activations.form == "power_of_two":
        kinds = [type.quantization for name, type in quantized.graph.types.items() if type.dtype == "uint8"]
        inner = [kind.scale[0] for kind in kinds if kind is not None and kind != BYTES.quantization]
        assert inner
        assert all(np.log2(scale) % 1 == 0 for scale in inner)


def test_samples_of_sound() -> None:
    class Sound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv1d(1, 8, 9, 4), nn.Conv1d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first((x.float() / 32768)[:, None]).relu())

    data = [(torch.randn(2, 400) * 6000).clamp(-32768, 32767).to(torch.int16) for _ in range(6)]
    quantized = check(Sound().eval(), data, data[1][:1], least=25)
    assert quantized.graph.inputs[0].type == TensorType("int16", Quantization((2.0**-15,)))


def test_what_bytes_compute_among_themselves_is_refused() -> None:
    def wraps(x: Tensor) -> Tensor:
        return (x - 128).float()

    data = pictures(NCHW, 2)
    with pytest.raises(kvant.UnsupportedOperatorError, match=r"aten.sub.Tensor.*arithmetic on uint8 activations"):
        kvant.quantize(Net(wraps), data[0], calibration=data, recipe=FAST)
    with pytest.raises(kvant.UnsupportedOperatorError, match="a join of float32 and uint8"):
        model: Any = Net(lambda x: torch.cat([x, x.float()], 1), channels=6)
        kvant.quantize(model, data[0], calibration=data, recipe=FAST)


def test_other_types_than_the_model_takes_are_refused() -> None:
    data = pictures(NCHW, 2)
    quantized = kvant.quantize(Net(lambda x: x / 255), data[0], calibration=data, recipe=FAST)
    with pytest.raises(kvant.InputError, match="has dtype float32, expected uint8"):
        quantized(data[0].float())
    with pytest.raises(kvant.CalibrationError, match=r"is torch.float32, the model takes uint8"):
        kvant.quantize(Net(lambda x: x / 255), data[0], calibration=[data[0].float()], recipe=FAST)
