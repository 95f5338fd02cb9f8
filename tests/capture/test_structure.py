"""Names and nesting of inputs and outputs, values that are baked in, in-place operators, sharing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvant.capture import Executor, capture, prepare

from .compare import Function, check, compare, example


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Detection:
    boxes: Tensor
    scores: Tensor
    extra: Tensor | None = None


class Module(nn.Module):
    """A module around a function of itself and its arguments."""

    def __init__(self, function: Any, **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)


def test_inputs_are_named_after_parameters() -> None:
    class Net(nn.Module):
        def forward(
            self, image: Tensor, pair: list[Tensor], scale: float = 1.0, *, mask: Tensor | None = None
        ) -> Tensor:
            total = image * scale + pair[0] - pair[1]
            return total if mask is None else total * mask

    x = example((1, 3, 4, 5))
    graph = capture(Net().eval(), [x, [x, x]], {"scale": 2.0, "mask": x})
    assert [entry.name for entry in graph.inputs] == ["image", "pair_0", "pair_1", "mask"]
    assert len({entry.shape for entry in graph.inputs}) == 1
    got = Executor(graph).run([x, x, x * 3, x])
    assert torch.allclose(got[0], (x * 2 + x - x * 3) * x)


def test_dict_inputs_and_surplus_arguments() -> None:
    class Net(nn.Module):
        def forward(self, features: dict[str, Tensor], *rest: Tensor) -> Tensor:
            return features["a"] + features["b"] + rest[0]

    x = example((2, 3))
    graph = capture(Net().eval(), [{"a": x, "b": x}, x])
    assert [entry.name for entry in graph.inputs] == ["features_a", "features_b", "rest_0"]


def test_outputs_keep_their_nesting() -> None:
    x = example((1, 3))
    nested = capture(Function(lambda x: (x + 1, [x * 2, {"deep": x.tanh()}])).eval(), [x])
    assert nested.structure == [0, [1, {"deep": 2}]]
    assert capture(Function(lambda x: Pair(x + 1, x * 2)).eval(), [x]).structure == {"first": 0, "second": 1}
    assert capture(Function(lambda x: Detection(x + 1, x * 2)).eval(), [x]).structure == {"boxes": 0, "scores": 1}
    assert capture(Function(lambda x: x + 1).eval(), [x]).structure == 0


def test_outputs_that_are_inputs_constants_or_repeated() -> None:
    graph = check(lambda x: (x, x + 1, torch.arange(3.0)), [example((2, 3))])
    assert graph.outputs[0] == graph.inputs[0].name
    twice = Function(lambda x: [x.relu()] * 2).eval()
    graph = capture(twice, [example((2, 3))])
    compare(twice, graph, [example((2, 3))])
    assert graph.outputs[0] == graph.outputs[1]


def test_inputs_that_are_not_read_stay() -> None:
    graph = capture(Function(lambda x, y: x + 1).eval(), [example((2, 3)), example((4,))])
    assert len(graph.inputs) == 2


def test_two_inputs_of_different_sizes() -> None:
    graph = check(
        lambda x, y: x.mean((2, 3)) + y.mean((2, 3)),
        [example((1, 3, 8, 10)), example((1, 3, 4, 6))],
        [example((2, 3, 5, 7)), example((2, 3, 9, 3))],
    )
    assert [entry.shape[0] for entry in graph.inputs] == [("batch",), ("batch",)]
    assert graph.example == {"batch": 1, "height": 8, "width": 10, "height_2": 4, "width_2": 6}


def test_sizes_that_must_be_equal_share_a_symbol() -> None:
    graph = check(lambda x, y: x * y, [example((1, 3, 8, 10)), example((1, 3, 8, 10))])
    assert graph.inputs[0].shape == graph.inputs[1].shape == (("batch",), 3, ("height",), ("width",))


def test_a_size_that_must_divide() -> None:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 6, 3, 2, 1), nn.ConvTranspose2d(6, 3, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.up(self.down(x))], 1)

    graph = check(UNet(), [example((1, 3, 8, 12))], [example((2, 3, 16, 10))])
    assert graph.inputs[0].shape == (("batch",), 3, ("height",), ("width",))


def test_in_place_operators() -> None:
    def net(x: Tensor) -> Tensor:
        y = x * 2
        y += 1
        y.mul_(x).clamp_(min=-1)
        return F.relu(y, inplace=True) + y

    check(net, [example((1, 3, 4, 5))], [example((2, 3, 6, 6))])


def test_in_place_on_a_view() -> None:
    def net(x: Tensor) -> Tensor:
        y = x * 2
        y[:, 1] += 1
        y[:, :, 1:3] = 0.5
        y[:, 0].relu_()
        return y

    check(net, [example((1, 3, 4, 5))], [example((2, 3, 4, 7))])


def test_in_place_seen_through_another_name() -> None:
    def net(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        flat = y.view(y.shape[0], -1)
        flat.relu_()
        return y, flat

    check(net, [example((1, 3, 4))], [example((2, 3, 4))])


def test_filled_output() -> None:
    def net(x: Tensor) -> Tensor:
        out = torch.zeros(2, 3, 4)
        out[:, 1:] = x
        return out

    check(net, [example((2, 2, 4))])


def test_shared_modules_and_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.other.weight = self.conv.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.conv(self.conv(x)))

    graph = check(Net(), [example((1, 3, 4, 5))])
    assert sum(value.ndim == 4 for value in prepare(graph).constants.values()) == 1


def test_weights_computed_from_weights_are_constants() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
            return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias)

    graph = check(nn.utils.parametrizations.weight_norm(Standardized(3, 4, 3)), [example((1, 3, 6, 7))])
    assert [node.op.kind for node in graph.nodes] == ["conv"]


def test_code_without_gradients() -> None:
    def net(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        return y + x.detach()

    check(net, [example((1, 3))])


def test_captured_under_no_grad_and_inference_mode() -> None:
    model = nn.Conv2d(3, 4, 3).eval()
    with torch.no_grad():
        compare(model, capture(model, [example((1, 3, 6, 6))]), [example((1, 3, 6, 6))])
    with torch.inference_mode():
        compare(model, capture(model, [example((1, 3, 6, 6))]), [example((1, 3, 6, 6))])


def test_the_model_is_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    graph = prepare(capture(model, [example((1, 3, 6, 6))]))
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0] and torch.equal(value, before[name][1])
    assert attributes == {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        model[0].weight.zero_()
    assert any(value.any() for value in graph.constants.values() if value.ndim == 4)


def test_where_nodes_come_from() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), [example((1, 3, 6, 6))])
    assert [node.source.module for node in graph.nodes] == ["0", "1"]
    own = capture(Function(lambda x: x.tanh()).eval(), [example((1, 3))]).nodes[0].source
    assert own.line.startswith("compare.py:")
    assert sorted(graph.constants) == ["0.bias", "0.weight"]


def test_dynamic_can_be_limited() -> None:
    model, x = nn.Conv2d(3, 4, 3).eval(), example((1, 3, 6, 7))
    assert capture(model, [x], dynamic="batch").inputs[0].shape == (("batch",), 3, 6, 7)
    assert capture(model, [x], dynamic="none").inputs[0].shape == (1, 3, 6, 7)


def test_a_model_that_fixes_its_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 5, 2))
    graph = check(model, [example((1, 3, 6, 7))], [example((4, 3, 6, 7))])
    assert graph.inputs[0].shape == (("batch",), 3, 6, 7)
