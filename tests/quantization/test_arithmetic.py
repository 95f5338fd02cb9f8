"""Layers that take float32 among layers that take integers: skipped, weight-only, and with scales at run time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant import ActivationScheme, Recipe, Rule, WeightScheme
from kvant.capture import Executor
from kvant.graph import Graph, Quantization, ops
from kvant.runtime import DECISIONS, QuantizedModel
from networks import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")


class Tokens(nn.Module):
    """A convolution, then tokens through linear layers, an activation and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.up = nn.Linear(24, 96)
        self.down = nn.Linear(96, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.norm(x + self.down(nn.functional.gelu(self.up(x))))
        return self.head(torch.relu(self.head.weight.new_ones(24) * x)).mean(1)


@pytest.fixture(scope="module")
def tokens() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().eval()


def images(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 16, 16, generator=generator) for _ in range(count)]


def quantize(model: nn.Module, tmp_path: Path, **chosen: object) -> QuantizedModel:
    """From the file, the same bits on both back ends."""
    data = images(4)
    recipe = Recipe(**({"activations": ActivationScheme(16)} | chosen))  # type: ignore[arg-type]
    kvant.quantize(model, data[0], calibration=data, recipe=recipe).save(tmp_path / "tokens.kvant")
    native, reference = (kvant.load(tmp_path / "tokens.kvant", backend=name) for name in ("native", "reference"))
    x = torch.cat(images(3, seed=7)).numpy()
    one, two = native.run_all({"x": x}), reference.run_all({"x": x})
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    return native


def file_size(model: QuantizedModel, tmp_path: Path) -> int:
    """Bytes of its file without what was decided, which is as long as what was tried."""
    del model.metadata[DECISIONS]
    model.save(tmp_path / "bare.kvant")
    return (tmp_path / "bare.kvant").stat().st_size


def layers(model: QuantizedModel) -> dict[str, tuple[str, str, bool]]:
    """Of each weighted layer, by module: dtypes of input and weight, and whether it has scales at run time."""
    graph = model.graph
    return {
        node.source.module: (*(graph.types[name].dtype for name in node.inputs[:2]), getattr(node.op, "dynamic", False))
        for node in graph.nodes
        if isinstance(node.op, ops.WEIGHTED)
    }


def quality(model: nn.Module, quantized: QuantizedModel) -> float:
    x = torch.cat(images(4, seed=9))
    return sqnr_db(model(x), quantized(x))


def test_dynamic_linear_layers(tokens: nn.Module, tmp_path: Path) -> None:
    quantized = quantize(tokens, tmp_path, arithmetic="dynamic", fine_weights=False)
    found = layers(quantized)
    assert found["up"] == found["down"] == found["head"] == ("float32", "int8", True)
    assert found["patch"][1] == "int8" and found["patch"][0] != "float32"
    assert quality(tokens, quantized) > 30


def test_weight_only(tokens: nn.Module, tmp_path: Path) -> None:
    eight = quantize(tokens, tmp_path, arithmetic="weight_only", fine_weights=False)
    assert set(layers(eight).values()) == {("float32", "int8", False)}
    assert quality(tokens, eight) > 35
    four = quantize(tokens, tmp_path, arithmetic="weight_only", weights=WeightScheme(4))
    assert file_size(four, tmp_path) < file_size(eight, tmp_path) - 2000
    assert 12 < quality(tokens, four) < quality(tokens, eight)


def test_nothing_quantized_is_nearly_exact(tokens: nn.Module, tmp_path: Path) -> None:
    quantized = quantize(tokens, tmp_path, arithmetic="float")
    assert set(layers(quantized).values()) == {("float32", "float32", False)}
    assert quality(tokens, quantized) > 65  # what 16-bit tables leave


def test_float16_is_nearly_exact_and_half_as_large(tokens: nn.Module, tmp_path: Path) -> None:
    quantized = quantize(tokens, tmp_path, arithmetic="float")
    size = (tmp_path / "tokens.kvant").stat().st_size
    half = quantize(tokens, tmp_path, arithmetic="float16")
    assert (tmp_path / "tokens.kvant").stat().st_size < size - 1.9 * sum(
        value.size for value in half.graph.constants.values() if value.dtype == np.float32 and value.ndim > 1
    )
    assert quality(tokens, half) > 60
    assert quality(tokens, quantized) >= quality(tokens, half) - 3


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    model[0].weight.data[1, 1] = 1e6  # type: ignore[operator, union-attr]
    with pytest.raises(kvant.RecipeError, match="use arithmetic='float'"):
        quantize(model, tmp_path, arithmetic="float16")


def test_skipped_layers_among_integers(tokens: nn.Module, tmp_path: Path) -> None:
    quantized = quantize(tokens, tmp_path, skip=("patch", "head"), fine_weights=False, target_sqnr=None)
    found = layers(quantized)
    assert found["patch"] == found["head"] == ("float32", "float32", False)
    assert found["up"][1] == found["down"][1] == "int8"
    names = {node.output for node in quantized.graph.nodes if isinstance(node.op, ops.Quantize)}
    assert "x.quantized" not in names  # the picture goes into the first layer as it is


def test_neighbours_pass_float32_on() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)).eval()
    data = images(2)
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=Recipe(arithmetic="float"))
    assert [type(node.op) for node in quantized.graph.nodes] == [ops.Conv, ops.Conv]
    assert sqnr_db(model(data[1]), quantized(data[1])) > 70


def test_a_tensor_may_be_read_both_ways(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.relu(self.a(x))
            return self.b(x) + self.c(x), x

    torch.manual_seed(2)
    model = Both().eval()
    for skip in (("a",), ("b",), ("c",), ("a", "b"), ("b", "c")):
        quantized = quantize(model, tmp_path, skip=skip)
        x = images(1, seed=4)[0]
        assert all(sqnr_db(wanted, got) > 30 for wanted, got in zip(model(x), quantized(x), strict=True))


class TestRefusals:
    def test_scales_at_run_time_of_a_convolution(self, tokens: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(kvant.RecipeError, match=r"'patch'|patch.*linear layers; use arithmetic='integer'"):
            quantize(tokens, tmp_path, rules=(Rule("patch", arithmetic="dynamic"),))

    def test_transposed_convolutions(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2)).eval()
        for chosen in ({"skip": ("0",)}, {"rules": (Rule("0", arithmetic="weight_only"),)}):
            with pytest.raises(kvant.RecipeError, match=r"integers only; use arithmetic='integer'"):
                quantize(model, tmp_path, **chosen)

    def test_what_multiplies_nothing(self, tokens: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(kvant.RecipeError, match=r"'norm' names no convolution.*ActivationScheme\(16\)"):
            quantize(tokens, tmp_path, rules=(Rule("norm", arithmetic="float"),))

    def test_names_that_do_not_exist(self, tokens: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(kvant.RecipeError, match="nowhere"):
            quantize(tokens, tmp_path, skip=("nowhere",))

    @pytest.mark.parametrize("bad", [{"arithmetic": "double"}, {"skip": "head"}])
    def test_recipes(self, bad: dict[str, object]) -> None:
        with pytest.raises(kvant.RecipeError, match=next(iter(bad))):
            Recipe(**bad)  # type: ignore[arg-type]
        with pytest.raises(kvant.RecipeError, match="arithmetic"):
            Rule(arithmetic="double")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("arithmetic", ["integer", "dynamic", "weight_only"])
def test_recurrent_layers_run_unrolled(kind: type[nn.Module], arithmetic: str) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(4, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    torch.manual_seed(3)
    model = Recurrent().eval()
    data = [torch.randn(1, 5, 4) for _ in range(8)]
    recipe = Recipe(arithmetic=arithmetic, activations=ActivationScheme(16))
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=recipe)
    x = torch.randn(1, 5, 4)
    assert sqnr_db(model(x), quantized(x)) > 25
    assert any(isinstance(node.op, ops.Linear) for node in quantized.graph.nodes)
    reference = QuantizedModel(quantized.graph, backend="reference")
    np.testing.assert_array_equal(reference(x.numpy()), quantized(x.numpy()))


def test_a_rule_and_its_scheme_of_activations_hold(tokens: nn.Module, tmp_path: Path) -> None:
    rules = (Rule("up", arithmetic="dynamic", activations=ActivationScheme(8)),)
    quantized = quantize(tokens, tmp_path, rules=rules, target_sqnr=None)
    assert layers(quantized)["up"][2]
    assert (
        quantized.graph.types["up.quantized" if "up.quantized" in quantized.graph.types else "linear.quantized"].dtype
        == "uint8"
    )


def test_what_is_measured_is_what_runs(tokens: nn.Module, tmp_path: Path) -> None:
    """The float graph rounds rows of dynamic layers as the runtime does, so that choices see that noise."""
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [1e-3], [1e3], [0.0], [1.0]]
    )
    x[4] = x[4].abs()
    weight = torch.randn(7, 40, generator=torch.Generator().manual_seed(1)).div(0.01).round().mul(0.01)
    graph = Graph()
    graph.add_input("x", (5, 40))
    name = graph.add_constant("w", weight.numpy())
    graph.add_node(ops.Linear(dynamic=True), ["x", name], "y")
    graph.outputs = ("y",)
    [simulated] = Executor(graph).run([x])
    values = np.rint(weight.numpy() / np.float32(0.01)).astype(np.int16)
    integer = Graph()
    integer.add_input("x", (5, 40))
    name = integer.add_constant("w", values, Quantization((0.01,)))
    integer.add_node(ops.Linear(dynamic=True), ["x", name], "y")
    integer.outputs = ("y",)
    np.testing.assert_allclose(simulated.numpy(), QuantizedModel(integer)(x.numpy()), rtol=1e-4, atol=1e-4)
    assert not torch.equal(simulated, x @ weight.T)


def test_around_dynamic_layers_8_bits_are_kept_where_they_pay(tokens: nn.Module, tmp_path: Path) -> None:
    """What a convolution of integers reads; what is nobody's operand has 16 bits."""
    graph = quantize(tokens, tmp_path, arithmetic="dynamic", activations=ActivationScheme(), target_sqnr=None).graph
    patch, norm = (
        next(node for node in graph.nodes if isinstance(node.op, kind)) for kind in (ops.Conv, ops.LayerNorm)
    )
    assert graph.types[patch.inputs[0]].dtype == "uint8"
    assert graph.types[norm.output].dtype == "int16"
