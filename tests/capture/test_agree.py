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


class Same(nn.Module):
    """A convolution that pads as TensorFlow does: by as much as its input's size needs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        missing = [max((-(size // -2) - 1) * 2 + 3 - size, 0) for size in x.shape[2:]]
        pads = [side for size in reversed(missing) for side in (size // 2, size - size // 2)]
        return self.conv(nn.functional.pad(x, pads))


def test_sizes_that_grow_from_layer_to_layer_are_fixed_in_time() -> None:
    """Each is several times as long as the one before."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *[Same() for _ in range(5)]).eval()
    graph = capture(model, [torch.rand(1, 3, 128, 128)])
    assert graph.inputs[0].shape == (("batch",), 3, 128, 128)
    x = torch.rand(2, 3, 128, 128)
    torch.testing.assert_close(Executor(graph).run([x])[0], model(x))


class Unfolds(nn.Module):
    """Cut into patches that are as high as a quarter of the map, which a tiny map has not."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[2] // 24
        return x.reshape(x.shape[0], 3, side, x.shape[2] // side, x.shape[3])


def test_sizes_by_which_a_shape_divides_by_zero_are_not_taken() -> None:
    graph = capture(Unfolds().eval(), [torch.rand(1, 3, 48, 32)])
    executor = Executor(graph)
    assert executor.run([torch.rand(1, 3, 48, 32)])[0].shape == (1, 3, 2, 24, 32)
    with pytest.raises((ShapeError, InputError)):
        executor.run([torch.rand(1, 3, 16, 32)])


class Anchors(nn.Module):
    """A detector's head as YOLO has it: places are computed anew when the size changes, and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: torch.Size | None = None
        self.places = torch.empty(0)
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.shape, self.places = x.shape, torch.arange(x.shape[2] * x.shape[3]).reshape(x.shape[2:]).to(x)
            self.tables[0] = self.places
        return x * self.places


@pytest.mark.parametrize("used", [False, True])
def test_what_a_model_keeps_of_the_last_size_is_left_as_it_was(used: bool) -> None:
    model, x = Anchors().eval(), torch.rand(1, 3, 32, 24)
    if used:
        model(x)
    before = (model.shape, model.places, dict(model.tables))
    graph = capture(model, [x])
    assert graph.inputs[0].shape == (("batch",), 3, ("height",), ("width",))
    assert model.shape == before[0]
    assert model.places is before[1]
    assert model.tables == before[2]
    for more in (torch.rand(2, 3, 32, 24), torch.rand(1, 3, 20, 28)):
        torch.testing.assert_close(Executor(graph).run([more])[0], model(more))
