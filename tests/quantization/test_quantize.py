"""kvant.quantize from model to integers: accuracy against float, the same bits from both back ends, bad input."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant.format import to_bytes
from kvant.graph import ops
from kvant.quantization.simulate import Plan
from kvant.runtime import QuantizedModel
from networks import settle_batch_norm, sqnr_db


def images(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, *shape, generator=generator) for _ in range(count)]


class Mixed(nn.Module):
    """Residual, concat, squeeze and excitation, depthwise, resize, pooling, two outputs: a bit of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.SiLU())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
        self.up = nn.ConvTranspose2d(32, 8, 2, 2)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        y = self.depthwise(x)
        y = x + y * torch.sigmoid(self.squeeze(y))
        y = torch.cat([nn.functional.max_pool2d(y, 3, 1, 1), nn.functional.avg_pool2d(x, 3, 1, 1)], 1)
        maps = self.norm(self.up(y))
        maps = nn.functional.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)
        return {"maps": maps, "scores": torch.softmax(self.head(maps.mean((2, 3))), 1)}


@pytest.fixture(scope="module")
def mixed() -> nn.Module:
    torch.manual_seed(0)
    return settle_batch_norm(Mixed(), images(8, 3, 32, 32, seed=5))


@pytest.fixture(scope="module")
def quantized(mixed: nn.Module) -> QuantizedModel:
    data = images(8, 3, 32, 32)
    return kvant.quantize(mixed, data[0], calibration=data)


def test_outputs_are_close_to_float_at_sizes_never_seen(mixed: nn.Module, quantized: QuantizedModel) -> None:
    for shape in ((1, 3, 32, 32), (2, 3, 40, 24)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        wanted, got = mixed(x), quantized(x)
        assert set(got) == {"maps", "scores"}
        assert sqnr_db(wanted["maps"], got["maps"]) > 25
        assert sqnr_db(wanted["scores"], got["scores"]) > 25


def test_native_and_reference_give_the_same_bits(quantized: QuantizedModel) -> None:
    x = images(1, 3, 36, 44, seed=3)[0].numpy()
    native = QuantizedModel(quantized.graph, backend="native")
    reference = QuantizedModel(quantized.graph, backend="reference")
    one, two = native.run_all({"x": x}), reference.run_all({"x": x})
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_weights_are_int8_and_activations_uint8(quantized: QuantizedModel) -> None:
    graph = quantized.graph
    for node in graph.nodes:
        if isinstance(node.op, ops.WEIGHTED):
            assert graph.types[node.inputs[1]].dtype == "int8"
            assert len(graph.types[node.inputs[1]].quantization.scale) == graph.constants[node.inputs[1]].shape[0]
    borders = (ops.Quantize, ops.Dequantize)
    inner = [node for node in graph.nodes if not isinstance(node.op, borders)]
    assert {graph.types[node.output].dtype for node in inner} <= {"uint8", "int16"}


def test_the_model_is_not_changed(mixed: nn.Module) -> None:
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    data = images(2, 3, 32, 32)
    kvant.quantize(mixed, data[0], calibration=data)
    assert not mixed.training
    for name, value in mixed.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_order_of_batches_does_not_change_a_byte(mixed: nn.Module) -> None:
    data = images(6, 3, 32, 32)
    files = [
        to_bytes(kvant.quantize(mixed, data[0], calibration=order, recipe=kvant.Recipe(samples=3)).graph)
        for order in (data, data[::-1], data[3:] + data[:3])
    ]
    assert files[0] == files[1] == files[2]


def test_calibration_takes_loaders_generators_dicts_and_arrays(mixed: nn.Module) -> None:
    data = images(4, 3, 32, 32)
    plain = to_bytes(kvant.quantize(mixed, data[0], calibration=data).graph)
    loader = torch.utils.data.DataLoader(torch.cat(data), batch_size=1)
    variants = [loader, (x for x in data), [{"x": x} for x in data], [(x,) for x in data], [x.numpy() for x in data]]
    for calibration in variants:
        assert to_bytes(kvant.quantize(mixed, data[0], calibration=calibration).graph) == plain


def test_arrays_of_any_layout(mixed: nn.Module) -> None:
    data = images(4, 3, 32, 32)
    arrays = [x.numpy() for x in data]
    readonly = [np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape) for x in arrays]
    reversed_axes = [x[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1] for x in arrays]
    variants = [readonly, reversed_axes, [np.asfortranarray(x) for x in arrays], [x.astype(">f4") for x in arrays]]
    plain = to_bytes(kvant.quantize(mixed, data[0], calibration=data).graph)
    with warnings.catch_warnings(action="error"):
        for calibration in variants:
            assert to_bytes(kvant.quantize(mixed, data[0], calibration=calibration).graph) == plain


def test_dicts_are_read_by_name() -> None:
    """Whatever their order, also within an argument: what ranges are measured on is what a loaded model will take."""

    class Nested(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch["small"] + torch.relu(batch["large"])

    class Named(nn.Module):
        def forward(self, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
            return small + torch.relu(large)

    inputs = [{"small": torch.rand(2, 8), "large": 100 * torch.rand(2, 8)} for _ in range(8)]
    turned = [dict(reversed(entry.items())) | {"label": torch.zeros(2)} for entry in inputs]
    for model, example in ((Nested().eval(), (inputs[0],)), (Named().eval(), inputs[0])):
        one, other = (kvant.quantize(model, example, calibration=data) for data in (inputs, turned))
        assert to_bytes(one.graph) == to_bytes(other.graph)
        assert sqnr_db(model(*example) if isinstance(example, tuple) else model(**example), one(inputs[0])) > 30


def test_threads_take_turns() -> None:
    """torch.export in two threads gave errors from within torch, or other weights than the model's."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    data = images(4, 3, 16, 16)

    def quantize(_: int) -> bytes:
        return to_bytes(kvant.quantize(model, data[0], calibration=data, recipe=kvant.Recipe(effort="fast")).graph)

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(quantize, range(6))
    assert all(each == first for each in others) and first == quantize(0)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("around", [torch.autocast("cpu"), torch.device("meta")])
def test_what_torch_is_set_to_changes_nothing(around: AbstractContextManager[object]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    data = images(4, 3, 16, 16)
    plain = to_bytes(kvant.quantize(model, data[0], calibration=data).graph)
    with around:
        assert to_bytes(kvant.quantize(model, data[0], calibration=data).graph) == plain


def test_calibration_data_may_quantize() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    data = images(2, 3, 16, 16)
    recipe = kvant.Recipe(effort="fast")

    def nested():
        kvant.quantize(model, data[0], calibration=data, recipe=recipe)
        yield from data

    assert kvant.quantize(model, data[0], calibration=nested(), recipe=recipe).backend


def test_sixteen_bits_everywhere_is_nearly_exact(mixed: nn.Module) -> None:
    data = images(4, 3, 32, 32)
    wide = kvant.quantize(mixed, data[0], calibration=data, recipe=kvant.Recipe(activations=kvant.ActivationScheme(16)))
    x = images(1, 3, 32, 32, seed=8)[0]
    assert sqnr_db(mixed(x)["maps"], wide(x)["maps"]) > 38  # what int8 weights leave
    dtypes = {wide.graph.types[node.output].dtype for node in wide.graph.nodes}
    assert "uint8" not in dtypes
    reference = QuantizedModel(wide.graph, backend="reference")
    np.testing.assert_array_equal(reference(x.numpy())["maps"], wide(x.numpy())["maps"])


def test_named_layers_get_sixteen_bits(mixed: nn.Module) -> None:
    data = images(2, 3, 32, 32)
    recipe = kvant.Recipe(wide=("up",), target_sqnr=None)
    graph = kvant.quantize(mixed, data[0], calibration=data, recipe=recipe).graph
    found = {graph.types[node.output].dtype for node in graph.nodes if isinstance(node.op, ops.ConvTranspose)}
    assert found == {"int16"}
    with pytest.raises(kvant.RecipeError, match="no_such_layer"):
        kvant.quantize(mixed, data[0], calibration=data, recipe=kvant.Recipe(wide=("no_such_layer*",)))


@pytest.mark.parametrize("observer", ["histogram", "minmax", "moving_average"])
@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "kl", "aciq", "cosine"])
def test_every_observer_and_range_method_works_or_is_refused(mixed: nn.Module, observer: str, method: str) -> None:
    data, scheme = images(4, 3, 32, 32), kvant.ActivationScheme(range=method)
    if observer != "histogram" and method not in ("mse", "minmax"):
        with pytest.raises(kvant.RecipeError, match="histogram"):
            kvant.Recipe(activations=scheme, observer=observer)
        return
    recipe = kvant.Recipe(activations=scheme, observer=observer, target_sqnr=None)
    got = kvant.quantize(mixed, data[0], calibration=data, recipe=recipe)(data[0])
    # The divergence of histograms clips more than the squared error likes.
    assert sqnr_db(mixed(data[0])["maps"], got["maps"]) > (15 if method == "kl" else 18)


class TestBadInput:
    def quantize(self, model: nn.Module, calibration: object, example: object = None) -> QuantizedModel:
        example = images(1, 3, 32, 32)[0] if example is None else example
        return kvant.quantize(model, example, calibration=calibration)

    def test_training_mode(self) -> None:
        with pytest.raises(kvant.ModelStateError, match=r"eval\(\)"):
            self.quantize(nn.Conv2d(3, 3, 1).train(), images(1, 3, 32, 32))

    def test_another_device(self) -> None:
        with pytest.raises(kvant.ModelStateError, match="meta"):
            self.quantize(nn.Conv2d(3, 3, 1).eval().to("meta"), images(1, 3, 32, 32))

    def test_weights_that_are_not_finite(self) -> None:
        model = nn.Conv2d(3, 3, 1).eval()
        model.weight.data[0, 0] = float("inf")
        with pytest.raises(kvant.ModelStateError, match="weight"):
            self.quantize(model, images(1, 3, 32, 32))

    @pytest.mark.parametrize("calibration", [[], iter(())])
    def test_no_data(self, mixed: nn.Module, calibration: object) -> None:
        with pytest.raises(kvant.CalibrationError):
            self.quantize(mixed, calibration)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_data_that_is_not_finite(self, mixed: nn.Module, value: float) -> None:
        data = images(3, 3, 32, 32)
        data[1][0, 0, 0, 0] = value
        with pytest.raises(kvant.CalibrationError, match=r"batch 2.*NaN or infinity"):
            self.quantize(mixed, data)

    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            (torch.zeros(3, 32, 32), "shape 3 x 32 x 32"),
            (torch.zeros(1, 4, 32, 32), "1 x 4 x 32 x 32"),
            (torch.zeros(1, 3, 32, 32, dtype=torch.float64), "float64"),
            (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8"),
            ((torch.zeros(1, 3, 32, 32), torch.tensor([1])), "2 tensors"),
            (np.ma.masked_less(np.zeros((1, 3, 32, 32), np.float32), 1), "masked; fill them first"),
            ("picture.jpg", "str"),
            ({"y": torch.zeros(1, 3, 32, 32)}, "holds y; the model takes x, so x is missing"),
            (torch.zeros(1, 3, 32, 32).to_sparse(), "not dense"),
            (torch.zeros(1, 3, 32, 32, device="meta"), "without values"),
            (np.array([["text"]]), "array of <U4, not of numbers"),
            (np.zeros((1, 3, 32, 32), [("a", "f4")]), "not of numbers"),
            (np.zeros((1, 3, 32, 32), "M8[s]"), "not of numbers"),
        ],
    )
    def test_data_that_does_not_fit(self, mixed: nn.Module, batch: object, message: str) -> None:
        with pytest.raises(kvant.CalibrationError, match=message):
            self.quantize(mixed, [batch])

    def test_what_is_no_data_recipe_or_metadata(self, mixed: nn.Module) -> None:
        """All before the work begins: metadata that no file can hold were refused when the result was saved."""
        (x,) = images(1, 3, 32, 32)
        with pytest.raises(kvant.CalibrationError, match="calibration is a int, expected an iterable"):
            kvant.quantize(mixed, x, calibration=5)  # type: ignore[arg-type]
        with pytest.raises(kvant.RecipeError, match=r"recipe is a str, expected a kvant\.Recipe"):
            kvant.quantize(mixed, x, calibration=[x], recipe="fast")  # type: ignore[arg-type]
        with pytest.raises(kvant.QuantizationError, match="metadata is a list, expected a dict"):
            kvant.quantize(mixed, x, calibration=[x], metadata=["a"])  # type: ignore[arg-type]
        for metadata in ({"a": 1}, {1: "a"}, {"": "a"}, {"a" * 257: "a"}, {"a": "\ud800"}):
            with pytest.raises(kvant.QuantizationError, match="metadata cannot be stored"):
                kvant.quantize(mixed, x, calibration=[x], metadata=metadata)  # type: ignore[arg-type]

    def test_a_sparse_example(self, mixed: nn.Module) -> None:
        with pytest.raises(kvant.CaptureError, match="input 'x' is no dense tensor"):
            self.quantize(mixed, images(1, 3, 32, 32), torch.zeros(1, 3, 32, 32).to_sparse())

    def test_interrupted_calibration_leaves_nothing_behind(self, mixed: nn.Module) -> None:
        def data():
            yield images(1, 3, 32, 32)[0]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.quantize(mixed, data())


def test_recipes_check_themselves() -> None:
    for bad in ({"observer": "psychic"}, {"weights": 7}, {"equalize": 1}, {"samples": 0}, {"wide": "up"}):
        with pytest.raises(kvant.RecipeError):
            kvant.Recipe(**bad)


def test_corrected_biases_that_measure_worse_are_not_taken(mixed: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A correction gone wrong on held-out samples leaves the file as it is without any."""
    data = images(8, 3, 32, 32)
    recipe = kvant.Recipe(compensate=False, fine_weights=False)
    without = kvant.quantize(mixed, data[0], calibration=data, recipe=replace(recipe, correct_bias=False))

    def spoil(plan: Plan, *_: object, **__: object) -> Plan:
        return replace(plan, biases={name: bias + 3 for name, bias in plan.biases.items()})

    monkeypatch.setattr("kvant.quantization.trial.correct", spoil)
    spoiled = kvant.quantize(mixed, data[0], calibration=data, recipe=recipe)
    assert to_bytes(spoiled.graph) == to_bytes(without.graph)
