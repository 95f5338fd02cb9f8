"""Level 1: generated inputs against the batch norms' own statistics, and quantized networks against float ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant.capture import Executor, capture, prepare
from kvant.format import to_bytes
from kvant.graph import ops
from kvant.quantization import generate as generating
from kvant.quantization.channels import Channels
from kvant.quantization.equalize import equalize
from kvant.quantization.generate import generate
from kvant.quantization.progress import Progress
from kvant.quantization.statistics import collect
from networks import pytorchcv_network, settle_batch_norm, sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")
SHOW = Progress(False)


class Net(nn.Module):
    """Batch norm, residual, and a head that no batch norm describes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


def data(count: int, seed: int) -> torch.Tensor:
    """Not what an example of unit noise looks like: shifted, wider, smooth."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (16, 16), mode="bilinear") * 3 + 1


@pytest.fixture(scope="module")
def net(one_thread: None) -> nn.Module:
    torch.manual_seed(0)
    return settle_batch_norm(Net(), [data(16, 1)])


EXAMPLE = torch.zeros(1, 3, 16, 16)


def misfit(net: nn.Module, inputs: torch.Tensor) -> float:
    """How far the means and deviations before the batch norms are from what these remember: torch's own modules."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    found: list[float] = []

    def look(norm: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        x, deviation = given[0], norm.running_var.sqrt()
        shift = (x.mean((0, 2, 3)) - norm.running_mean) / deviation
        spread = x.std((0, 2, 3)) / deviation - 1
        found.append(float((shift.square() + spread.square()).mean()))

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    with torch.no_grad():
        net(inputs)
    for hook in hooks:
        hook.remove()
    return sum(found)


def test_generated_inputs_have_the_statistics_that_batch_norms_remember(net: nn.Module) -> None:
    samples, what = generate(capture(net, [EXAMPLE], {}), [EXAMPLE], 8, SHOW)
    assert len(samples) == 8 and samples[0][0].shape == EXAMPLE.shape
    assert "2 batch norms" in what
    noise = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    shaped = torch.cat([sample[0] for sample in samples])
    assert misfit(net, shaped) < 0.1 * misfit(net, noise)


def test_it_comes_close_to_data(net: nn.Module) -> None:
    x = data(32, 7)
    with_data = kvant.quantize(net, EXAMPLE, calibration=[data(8, 3)])
    without = kvant.quantize(net, EXAMPLE, calibration=None, metadata={"name": "net"})
    assert sqnr_db(net(x), without(x)) > min(sqnr_db(net(x), with_data(x)) - 6, 26)
    assert without.metadata["name"] == "net"
    assert without.metadata["calibration"] == "no data; 8 inputs of noise, shaped by the statistics of 2 batch norms"
    assert "calibration" not in with_data.metadata


def test_ranges_hold_six_deviations(net: nn.Module) -> None:
    graph = kvant.quantize(net, EXAMPLE, calibration=None, recipe=kvant.Recipe(target_sqnr=None)).graph
    norm = net.body[1]
    wanted = float((norm.bias + 6 * norm.weight.abs()).max().detach())
    node = next(node for node in graph.nodes if isinstance(node.op, ops.Conv) and "body" in node.source.module)
    type_ = graph.types[node.output]
    high = (type_.integer_range()[1] - type_.quantization.zero_point) * type_.quantization.scale[0]
    assert high > 0.99 * wanted


def test_the_same_file_whatever_the_number_of_threads(net: nn.Module) -> None:
    files = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        samples, _ = generate(capture(net, [EXAMPLE], {}), [EXAMPLE], 4, SHOW)
        assert torch.get_num_threads() == threads
        files.append(torch.cat([sample[0] for sample in samples]).numpy().tobytes())
    torch.set_num_threads(1)
    assert files[0] == files[1]
    both = [to_bytes(kvant.quantize(net, EXAMPLE, calibration=None).graph) for _ in range(2)]
    assert both[0] == both[1]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(20, 16), nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.embedding(tokens)))


@pytest.mark.parametrize(
    ("build", "example"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.rand(2, 3, 12, 12) * 255),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 6)),
        (Words, torch.tensor([[1, 19, 4]])),
    ],
)
def test_without_batch_norm_it_says_so_and_keeps_16_bits(build: Callable[[], nn.Module], example: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = build().eval()
    quantized = kvant.quantize(model, example, calibration=None)
    assert "noise, for a network without batch norm" in quantized.metadata["calibration"]
    assert sqnr_db(model(example), quantized(example)) > 26
    weighted = [node.output for node in quantized.graph.nodes if isinstance(node.op, ops.WEIGHTED)]
    assert {quantized.graph.types[name].dtype for name in weighted} == {"int16"}


def test_inputs_that_no_batch_norm_describes_have_room() -> None:
    """The example is one of many: others reach twice as far, and nothing of the network tells."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    example, data = torch.randn(8, 6), 2 * torch.randn(64, 6)
    assert sqnr_db(model(data), kvant.quantize(model, example, calibration=None)(data)) > 30


@pytest.mark.parametrize("form", ["log2", "codebook", "symmetric"])
def test_levels_of_tables_are_placed_by_what_generated_inputs_excite(net: nn.Module, form: str) -> None:
    scheme = kvant.ActivationScheme(1 if form == "symmetric" else 4, form)  # type: ignore[arg-type]
    found = []
    for calibration in (None, list(data(8, 3).split(1))):
        quantized = kvant.quantize(net, EXAMPLE, calibration=calibration, recipe=kvant.Recipe(activations=scheme))
        assert any(node.output.endswith(".levels") for node in quantized.graph.nodes)
        found.append(sqnr_db(net(data(16, 4)), quantized(data(16, 4))))
    assert found[0] > found[1] - 3


@pytest.mark.parametrize("method", ["percentile", "kl", "aciq", "cosine"])
@pytest.mark.parametrize("by_rule", [False, True])
def test_ranges_that_need_data_are_refused(net: nn.Module, method: str, by_rule: bool) -> None:
    scheme = kvant.ActivationScheme(range=method)  # type: ignore[arg-type]
    recipe = kvant.Recipe(rules=(kvant.Rule("*", activations=scheme),)) if by_rule else kvant.Recipe(activations=scheme)
    with pytest.raises(kvant.RecipeError, match=r"calibration is None.* use range='minmax'"):
        kvant.quantize(net, EXAMPLE, calibration=None, recipe=recipe)


@pytest.mark.parametrize("name", ["resnet10", "mobilenetv2_wd4"])
def test_architectures_with_random_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "STEPS", 4)
    model = pytorchcv_network(name, 224, batch=2)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    quantized = kvant.quantize(model, x[:1], calibration=None, recipe=kvant.Recipe(samples=2))
    assert sqnr_db(model(x), quantized(x)) > 15


def test_what_relu_never_cuts_is_absorbed() -> None:
    """Channels that are never below c: c moves into the next bias, and the network stays the same."""
    torch.manual_seed(1)
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    first.bias.data += torch.linspace(0, 20, 8)
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    x = torch.rand(4, 3, 6, 6)
    graph = prepare(capture(model, [x], {}))
    seen = collect(graph, [[x]], "minmax", 4, SHOW)
    name = graph.nodes[0].output
    low = seen.channels[name].low
    assert isinstance(seen.channels[name], Channels) and (low > 0).sum() >= 4
    result = equalize(graph, seen.channels, center=True)
    offset, _ = result.moves[name]
    np.testing.assert_allclose(offset, np.maximum(low, 0), rtol=1e-6)
    [wanted], [got] = (Executor(entry).run([x]) for entry in (graph, result.graph))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
