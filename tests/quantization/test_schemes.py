"""Every pairing of bits, form, granularity and rounding runs alike on both back ends, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant import ActivationScheme, Recipe, Rule, WeightScheme
from kvant.capture import capture, prepare
from kvant.format import from_bytes, to_bytes
from kvant.graph import ops
from kvant.quantization import learned, schemes
from kvant.quantization.convert import convert
from kvant.quantization.decide import make_plan
from kvant.quantization.progress import Progress
from kvant.quantization.statistics import collect
from kvant.runtime import QuantizedModel
from networks import settle_batch_norm, sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")


class Small(nn.Module):
    """Ordinary, depthwise and transposed convolution, a residual, pooling, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.Hardtanh())
        self.body = nn.Conv2d(12, 12, 3, 1, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, 1, 1, groups=12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = nn.functional.relu(self.body(x) + x)
        x = nn.functional.max_pool2d(self.depthwise(x), 2)
        return self.head(self.up(x).mean((2, 3)))


def images(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 8, 8, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def small(one_thread: None) -> nn.Module:
    torch.manual_seed(0)
    return settle_batch_norm(Small(), images(8, seed=5))


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix is about integers; how well rounding is learned is tested elsewhere."""
    monkeypatch.setattr(learned, "STEPS", 3)


DATA = images(4)
# No step that measures: the matrix is about integers, not about accuracy.
PLAIN = {"target_sqnr": None, "equalize": False, "correct_bias": False, "fine_weights": False, "samples": 2}


Quantize = Callable[..., QuantizedModel]


@pytest.fixture(scope="module")
def quantize(small: nn.Module) -> Quantize:
    """Quantizes by a recipe what was captured and calibrated once."""
    show = Progress(False)
    graph = prepare(capture(small, (DATA[0],), {}))
    seen = collect(graph, [[image] for image in DATA], "histogram", 2, show)

    def run(**chosen: object) -> QuantizedModel:
        recipe = Recipe(**(PLAIN | chosen))  # type: ignore[arg-type]
        return QuantizedModel(convert(make_plan(graph, copy.deepcopy(seen), recipe, show)))

    return run


def check_both_back_ends(quantized: QuantizedModel) -> dict[str, np.ndarray]:
    """All activations, which are the same bits on both back ends, from the file's graph."""
    graph = from_bytes(to_bytes(quantized.graph)).graph
    x = torch.cat(images(2, seed=3)).numpy()
    native, reference = (QuantizedModel(graph, backend=name).run_all({"x": x}) for name in ("native", "reference"))
    for name in native:
        np.testing.assert_array_equal(native[name], reference[name], err_msg=name)
    return native


def weight_schemes() -> list[dict[str, object]]:
    """Every bits x form x granularity x rounding, refused ones included."""
    names = ("bits", "form", "granularity", "rounding")
    choices = (schemes.WeightBits, schemes.WeightForm, schemes.WeightGranularity, schemes.Rounding)
    found = [dict(zip(names, values, strict=True)) for values in product(*map(get_args, choices))]
    return [entry | ({"group": 4} if entry["granularity"] == "group" else {}) for entry in found]


def refused(chosen: dict[str, object]) -> bool:
    """The table of docs/schemes.md, written again."""
    bits, form, granularity = chosen["bits"], chosen["form"], chosen["granularity"]
    if form in ("log2", "apot", "codebook"):
        return bits not in (2, 3, 4) or granularity == "group"
    if form == "asymmetric":
        return bits in (16, 1) or granularity == "group"
    return granularity == "group" and bits == 16


def levels_allowed(scheme: WeightScheme) -> int:
    """How many different integers a row (or a group, before its factor) may hold."""
    return 3 if scheme.bits == 2 and scheme.form != "asymmetric" and scheme.form != "codebook" else 2**scheme.bits


@pytest.mark.parametrize("bits", get_args(schemes.WeightBits))
@pytest.mark.parametrize("form", get_args(schemes.WeightForm))
def test_every_weight_scheme_runs_or_is_refused(quantize: Quantize, bits: int, form: str) -> None:
    for chosen in (entry for entry in weight_schemes() if (entry["bits"], entry["form"]) == (bits, form)):
        if refused(chosen):
            with pytest.raises(kvant.RecipeError, match="use "):
                WeightScheme(**chosen)  # type: ignore[arg-type]
            continue
        scheme = WeightScheme(**chosen)  # type: ignore[arg-type]
        quantized = quantize(weights=scheme, correct_bias=scheme.rounding == "learned")
        check_both_back_ends(quantized)
        check_integers(quantized, scheme)


def test_learned_rounding_needs_the_correction_of_biases(quantize: Quantize) -> None:
    with pytest.raises(kvant.RecipeError, match="use correct_bias=True"):
        quantize(weights=WeightScheme(rounding="learned"))


def check_integers(quantized: QuantizedModel, scheme: WeightScheme) -> None:
    """The weights in the file are what the scheme says."""
    graph = quantized.graph
    for node in graph.nodes:
        if not isinstance(node.op, ops.WEIGHTED):
            continue
        name = node.inputs[1]
        quantization, values = graph.types[name].quantization, graph.constants[name]
        rows = values.reshape(len(values), -1)
        wide = scheme.bits == 16 or (
            scheme.bits == 8 and (scheme.form == "asymmetric" or scheme.granularity == "group")
        )
        assert values.dtype == (np.int16 if wide else np.int8)
        if scheme.bits < 8 and scheme.granularity != "group":
            assert max(len(np.unique(row)) for row in rows) <= levels_allowed(scheme)
        if scheme.granularity in ("tensor", "network"):
            assert len(quantization.scale) == 1
        if scheme.form == "power_of_two":
            assert all(np.frexp(scale)[0] == 0.5 for scale in quantization.scale)
        if scheme.form == "log2":
            magnitudes = np.unique(np.abs(values[values != 0])).astype(float)
            assert (np.frexp(magnitudes)[0] == 0.5).all()


@pytest.mark.parametrize("weight_bits", get_args(schemes.WeightBits))
@pytest.mark.parametrize("bits", get_args(schemes.ActivationBits))
def test_every_pairing_of_bits(quantize: Quantize, weight_bits: int, bits: int) -> None:
    for form in get_args(schemes.ActivationForm):
        if form in ("log2", "codebook") and bits not in (2, 4):
            with pytest.raises(kvant.RecipeError, match="use "):
                ActivationScheme(bits, form)
            continue
        for granularity in get_args(schemes.ActivationGranularity):
            scheme = ActivationScheme(bits, form, granularity)
            quantized = quantize(weights=WeightScheme(weight_bits), activations=scheme)
            check_activations(quantized, scheme, check_both_back_ends(quantized))


def check_activations(quantized: QuantizedModel, scheme: ActivationScheme, values: dict[str, np.ndarray]) -> None:
    graph = quantized.graph
    inner = {"x", "x.quantized", *graph.outputs, *(graph.nodes[-1].inputs)}
    for node in graph.nodes:
        kind = graph.types[node.output]
        if scheme.tabled and isinstance(node.op, ops.Table) and node.output.endswith(".levels"):
            assert len(np.unique(values[node.output])) <= 2**scheme.bits
        elif node.output not in inner and kind.quantization is not None and not scheme.tabled:
            assert values[node.output].max() <= kind.integer_range()[1]
            if scheme.bits == 16:
                assert kind.dtype == "int16"
            else:
                assert kind.integer_range()[1] == 2**scheme.bits - 1
            if scheme.form == "power_of_two":
                assert np.frexp(kind.quantization.scale[0])[0] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("bits", get_args(schemes.ActivationBits))
@pytest.mark.parametrize("form", get_args(schemes.ActivationForm))
def test_every_range_of_activations(quantize: Quantize, bits: int, form: str) -> None:
    if form in schemes.UNEVEN and bits not in (2, 4):
        return
    for granularity, method in product(get_args(schemes.ActivationGranularity), get_args(schemes.RangeMethod)):
        scheme = ActivationScheme(bits, form, granularity, method)  # type: ignore[arg-type]
        quantized = quantize(activations=scheme)
        check_activations(quantized, scheme, check_both_back_ends(quantized))


@pytest.mark.parametrize("bits", get_args(schemes.WeightBits))
@pytest.mark.parametrize("group", [1, 5, 1000])
def test_groups_that_divide_nothing(quantize: Quantize, bits: int, group: int) -> None:
    """Groups of one channel, of some of 12, 6 and 3, and of more than there are, by every range."""
    for form, method in product(("symmetric", "power_of_two"), get_args(schemes.RangeMethod)):
        chosen = {"bits": bits, "form": form, "granularity": "group", "group": group, "range": method}
        if refused(chosen):
            with pytest.raises(kvant.RecipeError, match="use "):
                WeightScheme(**chosen)  # type: ignore[arg-type]
            continue
        quantized = quantize(weights=WeightScheme(**chosen))  # type: ignore[arg-type]
        check_both_back_ends(quantized)
        if bits == 8 and method in ("mse", "minmax"):
            x = torch.cat(images(2, seed=3))
            plain = quantize(activations=ActivationScheme(), weights=WeightScheme(16))
            assert sqnr_db(plain(x), quantized(x)) > 25


@pytest.mark.parametrize("arithmetic", get_args(schemes.Arithmetic))
def test_every_arithmetic_with_every_form(quantize: Quantize, arithmetic: str) -> None:
    """Layers of floats and rows that get scales at run time keep weights of every form; neighbours every activation."""
    weights = [
        WeightScheme(16), WeightScheme(8, "asymmetric"), WeightScheme(4, "power_of_two"), WeightScheme(3, "log2"),
        WeightScheme(4, "apot"), WeightScheme(2, "codebook"), WeightScheme(1), WeightScheme(granularity="network"),
        WeightScheme(4, granularity="group", group=5), WeightScheme(4, rounding="stochastic", seed=3),
    ]  # fmt: skip
    activations = [
        ActivationScheme(), ActivationScheme(16), ActivationScheme(4), ActivationScheme(1, "symmetric"),
        ActivationScheme(4, "log2"), ActivationScheme(2, "codebook"), ActivationScheme(form="power_of_two"),
        ActivationScheme(granularity="network"),
    ]  # fmt: skip
    for at, scheme in enumerate(weights):
        for each in (activations[at % len(activations)], activations[(3 * at + 1) % len(activations)]):
            check_both_back_ends(quantize(arithmetic=arithmetic, weights=scheme, activations=each))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "scheme", [ActivationScheme(4, "log2"), ActivationScheme(2, "codebook"), ActivationScheme(1, "symmetric")]
)
def test_tables_of_recurrent_layers(kind: type[nn.Module], scheme: ActivationScheme) -> None:
    """The state that they begin with is a constant, of which there is no histogram to place levels by."""
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = kind(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x)[0][:, -1])

    data = [torch.randn(1, 5, 4) for _ in range(4)]
    quantized = kvant.quantize(
        Recurrent().eval(), data[0], calibration=data, recipe=Recipe(activations=scheme, **PLAIN)
    )  # type: ignore[arg-type]
    graph = from_bytes(to_bytes(quantized.graph)).graph
    native, reference = (QuantizedModel(graph, backend=name)(data[1].numpy()) for name in ("native", "reference"))
    np.testing.assert_array_equal(native, reference)
    assert any(node.output.endswith(".levels") for node in graph.nodes)


def test_forms_of_activations_place_their_zero(quantize: Quantize) -> None:
    found = {}
    for form in ("asymmetric", "symmetric", "power_of_two"):
        graph = quantize(activations=ActivationScheme(8, form)).graph
        found[form] = {
            graph.types[node.output].quantization.zero_point for node in graph.nodes if isinstance(node.op, ops.Conv)
        }
    assert found["symmetric"] == found["power_of_two"] == {0, 128} or found["symmetric"] == {128}
    assert found["asymmetric"] != found["symmetric"]


def test_one_scale_for_the_network(quantize: Quantize) -> None:
    scheme = ActivationScheme(granularity="network")
    graph = quantize(activations=scheme, weights=WeightScheme(granularity="network")).graph
    scales = {type.quantization.scale for type in graph.types.values() if type.dtype == "uint8" and type.quantization}
    assert len(scales) == 1
    weights = {type.quantization.scale for type in graph.types.values() if type.dtype == "int8" and type.quantization}
    assert len(weights) == 1


class TestRules:
    def test_the_last_rule_that_fits_decides(self, quantize: Quantize) -> None:
        rules = (
            Rule(kind="conv", weights=WeightScheme(bits=2)),
            Rule("body*", weights=WeightScheme(bits=4)),
            Rule("up", activations=ActivationScheme(16)),
        )
        graph = quantize(rules=rules).graph
        found = {
            node.source.module: len(np.unique(graph.constants[node.inputs[1]]))
            for node in graph.nodes
            if isinstance(node.op, ops.WEIGHTED)
        }
        assert found["stem.0"] == found["depthwise"] == 3
        assert 3 < found["body"] <= 15 < found["head"]
        assert next(graph.types[node.output].dtype for node in graph.nodes if node.source.module == "up") == "int16"

    def test_a_rule_may_name_inputs_and_outputs(self, quantize: Quantize) -> None:
        few = ActivationScheme(4)
        graph = quantize(activations=few).graph
        assert graph.types["x.quantized"].integer_range() == (0, 255)
        graph = quantize(activations=few, rules=(Rule("x", activations=few),)).graph
        assert graph.types["x.quantized"].integer_range() == (0, 15)

    @pytest.mark.parametrize(
        ("chosen", "near"),
        [
            ({"rules": (Rule("steem*", weights=WeightScheme(4)),)}, "'stem"),
            ({"skip": ("bodyy",)}, "'body'"),
            ({"wide": ("depth",)}, "'depthwise'"),
            ({"wide": ("zzz",)}, "'stem"),
            ({"rules": (Rule(kind="Conv", weights=WeightScheme(4)),)}, "'conv', 'convtranspose'"),
        ],
    )
    def test_names_that_do_not_exist_are_answered_by_near_ones(
        self, quantize: Quantize, chosen: dict[str, object], near: str
    ) -> None:
        with pytest.raises(kvant.RecipeError, match=f"use one of .*{near}"):
            quantize(**chosen)

    def test_a_rule_about_nothing_is_an_error(self, quantize: Quantize) -> None:
        with pytest.raises(kvant.RecipeError, match=r"'nowhere\*' matches no tensor"):
            quantize(rules=(Rule("nowhere*", weights=WeightScheme()),))
        with pytest.raises(kvant.RecipeError, match="of kind 'lstm'"):
            quantize(rules=(Rule(kind="lstm", weights=WeightScheme()),))

    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            ({"rules": (Rule("max_pool*", weights=WeightScheme(4)),)}, r"'max_pool\*' names no conv.*use activations="),
            ({"rules": (Rule(kind="binary", weights=WeightScheme(4)),)}, "weights of 4 bits; use activations="),
            ({"rules": (Rule("head"),)}, "'head'.* says nothing; use weights="),
            ({"skip": ("max_pool*",)}, r"'max_pool\*' names no convolution.*use wide="),
        ],
    )
    def test_a_wish_that_nothing_can_fulfil_is_an_error(
        self, quantize: Quantize, chosen: dict[str, object], message: str
    ) -> None:
        with pytest.raises(kvant.RecipeError, match=message):
            quantize(**chosen)

    @pytest.mark.parametrize("bad", [{"pattern": 1}, {"weights": 4}, {"activations": WeightScheme()}, {"kind": 1}])
    def test_rules_check_themselves(self, bad: dict[str, object]) -> None:
        with pytest.raises(kvant.RecipeError, match=next(iter(bad))):
            Rule(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "chosen",
    [
        {"bits": 5}, {"bits": True}, {"bits": 4.0}, {"form": "ternary"}, {"granularity": "row"}, {"rounding": "up"},
        {"range": "best"}, {"percentile": 50}, {"percentile": "99"}, {"seed": -1}, {"seed": 0.5}, {"group": 32},
        {"granularity": "group"}, {"granularity": "group", "group": 0}, {"granularity": "group", "group": True},
        {"form": "codebook", "bits": 4, "range": "kl"}, {"form": "asymmetric", "range": "kl"},
    ],
)  # fmt: skip
def test_schemes_check_themselves(chosen: dict[str, object]) -> None:
    with pytest.raises(kvant.RecipeError, match=next(reversed(chosen))):
        WeightScheme(**chosen)  # type: ignore[arg-type]


def test_stochastic_rounding_is_seeded(small: nn.Module) -> None:
    def file(seed: int, data: list[torch.Tensor] = DATA) -> bytes:
        recipe = Recipe(WeightScheme(bits=4, rounding="stochastic", seed=seed), **PLAIN)  # type: ignore[arg-type]
        return to_bytes(kvant.quantize(small, DATA[0], calibration=data, recipe=recipe).graph)

    assert file(1) == file(1, DATA[::-1])
    assert file(1) != file(2)


@pytest.mark.parametrize(
    "scheme", [ActivationScheme(1, "symmetric"), ActivationScheme(4, "log2"), ActivationScheme(2, "codebook")]
)
def test_what_is_read_by_tables_is_not_widened(small: nn.Module, scheme: ActivationScheme) -> None:
    """A table of 65,536 entries for few levels: whatever the target, the file would be the larger for nothing."""
    recipe = Recipe(activations=scheme, weights=WeightScheme(4), target_sqnr=40.0)
    graph = kvant.quantize(small, DATA[0], calibration=DATA, recipe=recipe).graph
    levels = [node for node in graph.nodes if node.output.endswith(".levels")]
    assert levels and {graph.types[node.inputs[0]].dtype for node in levels if node.inputs[0] != "x.quantized"} == {
        "uint8"
    }
    named = Recipe(activations=scheme, wide=("body*",), target_sqnr=40.0)
    graph = kvant.quantize(small, DATA[0], calibration=DATA, recipe=named).graph
    assert {graph.types[node.output].dtype for node in graph.nodes if node.source.module == "body"} >= {"int16"}


def test_few_bits_keep_what_they_can(small: nn.Module) -> None:
    """More bits are better, and so is whatever looks at the data; with everything on, 4 bits are usable."""
    data = images(12)
    x = torch.cat(images(8, seed=9))

    def quality(**chosen: object) -> float:
        quantized = kvant.quantize(small, data[0], calibration=data, recipe=Recipe(target_sqnr=None, **chosen))  # type: ignore[arg-type]
        return sqnr_db(small(x), quantized(x))

    by_bits = [quality(weights=WeightScheme(bits), activations=ActivationScheme(16)) for bits in (1, 2, 3, 4, 8, 16)]
    assert by_bits == sorted(by_bits)
    assert by_bits[-1] > 50 and by_bits[3] > 18
