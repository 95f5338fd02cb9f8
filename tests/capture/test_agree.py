"""Models whose code asks for sizes: the graph either does the same at other sizes or takes the example's only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kvant.capture import Executor, capture
from kvant.errors import InputError, ShapeError


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[2] > 20 else x * 3


class Aspect(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.shape[2] >= x.shape[3] else -x


class PadToEight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        missing = (-x.shape[2]) % 8
        return nn.functional.pad(x, (0, 0, 0, missing)) if missing else x


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 32:
            raise KeyError("sizes must be multiples of 32")
        return x * 2


@pytest.mark.parametrize("model", [Branch(), Aspect(), PadToEight()])
def test_another_way_through_the_code_is_not_missed(model: nn.Module) -> None:
    example = torch.rand(2, 3, 32, 24) + 0.1
    executor = Executor(capture(model.eval(), [example]))
    torch.testing.assert_close(executor.run([example])[0], model(example))
    for size in ((8, 24), (36, 24), (24, 32)):
        with pytest.raises((ShapeError, InputError)):
            executor.run([torch.rand(2, 3, *size)])


def test_a_model_that_refuses_sizes_keeps_those_it_takes() -> None:
    graph = capture(Refuses().eval(), [torch.rand(1, 3, 64, 64)])
    assert graph.inputs[0].shape[2:] == (("height",), ("width",))


def test_sizes_stay_free_where_the_code_does_not_ask() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.MaxPool2d(2, ceil_mode=True), nn.Upsample(scale_factor=2))
    graph = capture(model.eval(), [torch.rand(1, 3, 32, 32)])
    assert graph.inputs[0].shape == (("batch",), 3, ("height",), ("width",))
