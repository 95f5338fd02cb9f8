"""Each pass on graphs written by hand and captured: the same function, simpler nodes, the given graph unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvant.capture import Executor, capture, fold_batch_norm, passes, prepare
from kvant.graph import Graph, ops, validate
from kvant.graph.ops import Step

from .compare import Function, check, compare, example, realistic

IMAGE = example((2, 4, 8, 8))


def kinds(graph: Graph) -> list[str]:
    return [node.op.kind for node in graph.nodes]


def prepared(subject: nn.Module | Callable[..., object], *inputs: Tensor) -> Graph:
    model = subject if isinstance(subject, nn.Module) else Function(subject)
    model.eval()
    graph = capture(model, inputs or [IMAGE])
    compare(model, graph, inputs or [IMAGE])
    return prepare(graph)


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    ],
    ids=["conv", "groups", "transposed"],
)
def test_batch_norm_folds_into_the_layer_before(layer: nn.Module, norm: nn.Module) -> None:
    model = realistic(nn.Sequential(layer, norm)).eval()
    graph = capture(model, [IMAGE])
    folded = fold_batch_norm(graph)
    assert len(kinds(folded)) == 1 and folded.nodes[0].output == graph.nodes[1].output
    assert len(graph.nodes) == 2
    validate(folded)
    compare(model, folded, [IMAGE])


def test_batch_norm_stays_where_others_read_the_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    graph = prepared(realistic(Net()))
    assert kinds(graph) == ["conv", "conv", "binary"]
    assert isinstance(graph.nodes[1].op, ops.Conv) and graph.nodes[1].op.groups == 4


def test_batch_norm_over_another_axis_does_not_fold() -> None:
    model = realistic(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(5)))
    assert kinds(prepared(model, example((2, 5, 8)))) == ["linear", "conv"]
    matrix = realistic(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU()))
    assert kinds(prepared(matrix, example((3, 8)))) == ["linear"]
    first = realistic(nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()))
    assert kinds(prepared(first, example((3, 8)))) == ["binary", "binary"]


def test_folding_is_done_in_double_precision() -> None:
    model = realistic(nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6))).eval()
    graph = prepare(capture(model, [IMAGE]))
    norm = model[1]
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    wanted = (model[0].weight.double() * factor.reshape(-1, 1, 1, 1)).float()
    assert np.array_equal(graph.constants[graph.nodes[0].inputs[1]], wanted.detach().numpy())


@pytest.mark.parametrize(
    ("activation", "clamp"),
    [
        (nn.ReLU(), (0.0, None)), (nn.ReLU6(), (0.0, 6.0)), (nn.Hardtanh(-1.5, 2.0), (-1.5, 2.0)),
        (nn.Sequential(nn.ReLU(), nn.Hardtanh(-1, 0.5)), (0.0, 0.5)),
        (nn.Sequential(nn.ReLU6(), nn.Hardtanh(7, 9)), (7.0, 7.0)),
    ],
)  # fmt: skip
def test_clamps_are_fused(activation: nn.Module, clamp: ops.Clamp) -> None:
    graph = prepared(nn.Sequential(nn.Conv2d(4, 6, 3), activation))
    assert kinds(graph) == ["conv"]
    assert graph.nodes[0].op.clamp == clamp  # type: ignore[union-attr]


def test_a_clamp_is_not_fused_into_what_others_read() -> None:
    conv = nn.Conv2d(4, 4, 1)
    graph = prepared(lambda x: conv(x) + conv(x).relu())
    assert len(graph.nodes) == 3

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, y.relu()

    graph = prepared(Both())
    assert graph.nodes[0].op.clamp is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(x),
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * torch.tanh(F.softplus(x)),
        lambda x: (2 * x + 1).tanh() / 3 - 1,
        lambda x: torch.minimum(x.exp(), 1 - x),
        lambda x: x.relu() + x.neg().relu(),
    ],
)
def test_functions_of_one_tensor_are_fused(function: Callable[[Tensor], Tensor]) -> None:
    graph = prepared(function)
    assert kinds(graph) == ["pointwise"]


def test_functions_with_a_parameter_are_fused() -> None:
    graph = prepared(nn.Sequential(nn.Tanh(), nn.PReLU(4), nn.Sigmoid()))
    assert kinds(graph) == ["pointwise"]
    assert graph.nodes[0].op.axis == 1  # type: ignore[union-attr]
    assert kinds(prepared(nn.Sequential(nn.PReLU(4), nn.PReLU(4)))) == ["pointwise", "pointwise"]


def test_gates_of_another_tensor_are_not_fused() -> None:
    graph = prepared(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid())
    assert kinds(graph) == ["reduce", "pointwise", "binary"]


def test_zero_padding_goes_into_the_convolution() -> None:
    graph = prepared(nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(4, 6, 3, padding=1)))
    assert kinds(graph) == ["conv"]
    op = graph.nodes[0].op
    assert isinstance(op, ops.Conv) and (op.pads_begin, op.pads_end) == ((3, 1), (4, 2))
    other = prepared(nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 6, 3)))
    assert kinds(other) == ["pad", "conv"]


def test_moves_that_do_nothing_are_removed() -> None:
    graph = prepared(lambda x: x.permute(0, 2, 3, 1).tanh().permute(0, 3, 1, 2).transpose(1, 2).transpose(1, 2))
    assert kinds(graph) == ["transpose", "pointwise", "transpose"]
    assert kinds(prepared(lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2) + 1)) == ["pointwise"]
    assert kinds(prepared(lambda x: x.flatten(1).view(x.shape).tanh())) == ["pointwise"]
    assert kinds(prepared(lambda x: F.pad(x, (0, 0)) + x.reshape(x.shape).mean(1, keepdim=True))) == [
        "reduce",
        "binary",
    ]


def test_dead_nodes_are_removed() -> None:
    def net(x: Tensor) -> Tensor:
        x.exp().sum()
        return x.max(1).values

    assert kinds(prepared(net)) == ["reduce"]


def test_equal_constants_are_merged() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).tanh())

    assert len(prepared(Net()).constants) == 2


@pytest.mark.parametrize("name", sorted(set(passes.__all__) - {"prepare"}))
def test_passes_leave_their_argument_alone(name: str) -> None:
    model = realistic(
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.SiLU())
    ).eval()
    graph = capture(model, [IMAGE])
    before = copy.deepcopy(graph)
    result = getattr(passes, name)(graph)
    assert (graph.nodes, graph.types, graph.outputs) == (before.nodes, before.types, before.outputs)
    assert graph.constants.keys() == before.constants.keys()
    assert all(np.array_equal(graph.constants[key], before.constants[key]) for key in before.constants)
    compare(model, result, [IMAGE])


def test_an_output_that_is_clamped_and_an_input_that_is_an_output() -> None:
    graph = prepared(lambda x: (x, x.clamp(0, 1), x.clamp(0, 1).flatten(1)))
    assert graph.outputs[0] == graph.inputs[0].name


def test_long_programs_are_split() -> None:
    def net(x: Tensor) -> Tensor:
        for _ in range(8):
            x = x * x.sigmoid() + 0.1
        return x

    graph = prepared(net)
    assert 1 < len(graph.nodes) < 16
    for node in graph.nodes:
        assert isinstance(node.op, ops.Pointwise) and len(node.op.program) <= 64


def test_the_executor_shows_every_activation_and_takes_replacements() -> None:
    graph = Graph()
    graph.add_input("x", (("batch",), 2))
    graph.example = {"batch": 1}
    graph.add_node(ops.Pointwise((Step("x"), Step("const", 1.0), Step("add"))), ["x"], "y")
    graph.add_node(ops.Binary("mul"), ["x", "y"], "z")
    graph.outputs = ("z",)
    seen: list[str] = []

    def observe(name: str, value: Tensor) -> Tensor | None:
        seen.append(name)
        return value * 10 if name == "y" else None

    result = Executor(graph).run([torch.tensor([[1.0, 2.0]])], observe)
    assert seen == ["x", "y", "z"]
    assert result[0].tolist() == [[20.0, 60.0]]


@pytest.mark.parametrize("far", [float("inf"), torch.finfo(torch.float32).max])
def test_masks_that_end_in_sigmoids_are_near(far: float) -> None:
    """Anchors outside the picture, as RT-DETR has them."""
    anchors = example((1, 6, 4))
    anchors[0, 2] = far

    def forward(x: Tensor) -> Tensor:
        logits = x + anchors
        best = x[..., 0].topk(3, dim=1)[1].unsqueeze(-1)
        return logits.gather(1, best.expand(-1, -1, 4)).sigmoid() * 2 - 1

    graph = prepare(check(forward, [example((1, 6, 4), 1)], [example((3, 6, 4), 2)]))
    largest = max(float(abs(value).max()) for value in graph.constants.values() if value.dtype == "float32")
    assert largest < 20


def test_other_masks_stay() -> None:
    mask = torch.where(example((5, 5)) > 0, 0.0, -1e4)
    for function in (lambda x: (x + mask).softmax(-1), lambda x: (x + mask, (x + mask).sigmoid())):
        graph = prepare(capture(Function(function).eval(), [example((2, 5, 5))]))
        assert min(float(value.min()) for value in graph.constants.values()) == -1e4
