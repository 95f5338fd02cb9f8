"""Small models as users write them, end to end: the same bits from both back ends, near the float model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kvant
from kvant.format import from_bytes, to_bytes
from kvant.quantization import ActivationScheme, Recipe
from kvant.runtime import QuantizedModel
from networks import sqnr_db

FAST = Recipe(effort="fast")


class Function(nn.Module):
    """A model whose forward is any function of the module and its inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.eval()

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def check(
    model: nn.Module, data: list[tuple[Any, ...]], *others: tuple[Any, ...], least: float = 25, recipe: Recipe = FAST
) -> QuantizedModel:
    """Quantize, save, load, and run on the first input and on ``others``."""
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=recipe)
    graph = from_bytes(to_bytes(quantized.graph)).graph
    native, reference = (QuantizedModel(graph, backend=name) for name in ("native", "reference"))
    for inputs in (data[0], *others):
        with torch.no_grad():
            wanted = _flat(model(*inputs))
        one, two = _flat(native(*inputs)), _flat(reference(*inputs))
        for float_output, first, second in zip(wanted, one, two, strict=True):
            np.testing.assert_array_equal(first.numpy(), second.numpy(), strict=True)
            assert first.shape == float_output.shape
            assert sqnr_db(float_output.float(), first) >= least
    return quantized


def _flat(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def images(count: int, batch: int = 1, size: int = 16) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(count)
    return [(torch.randn(batch, 3, size, size, generator=generator),) for _ in range(count)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_tagger_reads_one_sentence_with_a_bidirectional_lstm() -> None:
    embedding, layer = nn.Embedding(50, 8), nn.LSTM(8, 12, 2, batch_first=True, bidirectional=True)
    model = Function(lambda m, x: m.head(m.layer(m.embedding(x))[0]), embedding=embedding, layer=layer,
                     head=nn.Linear(24, 5))  # fmt: skip
    data = [(torch.randint(0, 50, (2, 6)),) for _ in range(8)]
    check(model, data, (torch.randint(0, 50, (1, 6)),), least=20)


def test_a_constant_is_returned_beside_what_depends_on_the_input() -> None:
    """Detectors return their anchors so."""
    model = Function(lambda m, x: (m.conv(x), torch.arange(6.0).view(2, 3)), conv=nn.Conv2d(3, 8, 3))
    quantized = check(model, images(8), *images(1, batch=2))
    np.testing.assert_array_equal(quantized(images(1)[0][0].numpy())[1], np.arange(6, dtype=np.float32).reshape(2, 3))


def test_a_vector_without_batch() -> None:
    check(Function(lambda m, x: m.second(m.first(x).relu()), first=nn.Linear(12, 16), second=nn.Linear(16, 4)),
          [(torch.randn(12),) for _ in range(8)])  # fmt: skip


def test_a_matrix_as_wide_as_the_batch_is_not_cut_into_samples() -> None:
    """The nodes of a graph with their adjacency."""

    def forward(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ m.second((adjacency @ m.first(x)).relu())

    def nodes(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 8), torch.rand(count, count).softmax(1)

    check(Function(forward, first=nn.Linear(8, 16), second=nn.Linear(16, 4)), [nodes(9) for _ in range(8)], nodes(12))


def test_squeeze_of_a_single_sample_drops_its_axis() -> None:
    model = Function(lambda m, x: m.conv(x).mean((2, 3)).squeeze(), conv=nn.Conv2d(3, 8, 3))
    quantized = check(model, images(8))
    assert quantized(images(1)[0][0]).shape == (8,)
    with pytest.raises(kvant.InputError, match="expected 1 x 3 x 16 x 16"):
        quantized(images(1, batch=2)[0][0])


def test_an_autocast_that_is_off_changes_nothing() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = m.conv(x)
        with torch.autocast("cuda"):
            return m.conv2(x.relu())

    check(Function(forward, conv=nn.Conv2d(3, 8, 3), conv2=nn.Conv2d(8, 4, 1)), images(8), *images(1, batch=2))


def test_an_autocast_that_casts_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.conv(x).float()

    with pytest.raises(kvant.UnsupportedOperatorError, match="autocast"):
        check(Function(forward, conv=nn.Conv2d(3, 8, 3)), images(2))


def test_indices_of_max_pooling_are_refused_where_they_are_used() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return nn.functional.max_unpool2d(*nn.functional.max_pool2d(m.conv(x), 2, return_indices=True), 2)

    with pytest.raises(kvant.UnsupportedOperatorError, match=r"max_pool2d_with_indices.*result number 2 is used"):
        check(Function(forward, conv=nn.Conv2d(3, 8, 3, padding=1)), images(2))


class Encoder(nn.Module):
    """A text encoder with its padding masked, which returns the mean of the tokens that count."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self.masked = masked
        self.words, self.query = nn.Embedding(50, 16), nn.Linear(16, 48)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 8)
        self.eval()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        query, key, value = self.query(x).chunk(3, -1)
        scores = (query @ key.transpose(1, 2) / 4).masked_fill(mask[:, None] == 0, self.masked)
        x = self.norm(x + scores.softmax(-1) @ value)
        counted = mask.unsqueeze(-1).float()
        return self.head((x * counted).sum(1) / counted.sum(1))


def sentences(batch: int, length: int) -> tuple[Tensor, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length - 3 :] = 0
    return torch.randint(0, 50, (batch, length)), mask


@pytest.mark.parametrize("masked", [float("-inf"), -1e9, -1e4])
def test_masked_attention_keeps_its_range_for_what_is_not_masked(masked: float) -> None:
    data = [sentences(2, 10) for _ in range(8)]
    quantized = check(Encoder(masked), data, sentences(1, 10), sentences(3, 13), least=20)
    scores = next(node.inputs[0] for node in quantized.graph.nodes if node.op.kind == "softmax")
    kind = quantized.graph.types[scores]
    assert kind.quantization is not None
    assert kind.quantization.scale[0] * (kind.integer_range()[1] - kind.integer_range()[0]) < 40
    for backend in ("native", "reference"):
        ids, mask = sentences(2, 10)
        with pytest.raises(kvant.InputError, match="index 2 is out of range"):
            QuantizedModel(quantized.graph, backend=backend)(ids, mask * 2)


def test_inputs_are_nested_as_the_model_takes_them() -> None:
    def forward(m: Any, batch: dict[str, Any], state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return m.conv(batch["image"]) + m.tag(batch["meta"]["tag"])[:, :, None, None], state[0] * state[1]

    model = Function(forward, conv=nn.Conv2d(3, 8, 3), tag=nn.Linear(4, 8))

    def call() -> tuple[Any, ...]:
        image, tag = torch.randn(2, 3, 8, 8), torch.randn(2, 4)
        return {"image": image, "meta": {"tag": tag}}, (torch.rand(2, 5), torch.rand(2, 5))

    inputs = call()
    quantized = check(model, [call() for _ in range(8)], call(), least=10)
    expected = quantized(*inputs)
    image, tag, one, two = inputs[0]["image"], inputs[0]["meta"]["tag"], *inputs[1]
    others = [
        quantized(image, tag, one, two),
        quantized(args_0_image=image, args_0_meta_tag=tag, args_1_0=one, args_1_1=two),
        quantized({"meta": {"tag": tag}, "image": image}, (one, two)),
    ]
    for outputs in others:
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    with pytest.raises(kvant.InputError, match="unknown input 'picture'"):
        quantized({"picture": image, "meta": {"tag": tag}}, (one, two))
    with pytest.raises(kvant.InputError, match="is missing"):
        quantized({"image": image}, (one, two))


@pytest.mark.parametrize("pad", [False, True])
def test_a_class_token_keeps_its_small_values(pad: bool) -> None:
    """It shares a scale with patches that are a hundred times as large; its rounding is measured like any other."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = 3 * m.embed(x)
        if pad:
            x = nn.functional.pad(x, (0, 0, 1, 0), value=0.02)
        x = torch.cat([m.token.weight[None].expand(x.shape[0], -1, -1), x], 1)
        return m.mix(m.norm(x))[:, : 1 + pad]

    token = nn.Embedding(1, 16)
    nn.init.normal_(token.weight, std=0.02)
    model = Function(forward, token=token, embed=nn.Linear(8, 16), norm=nn.LayerNorm(16), mix=nn.Linear(16, 8))
    quantized = check(model, [(torch.randn(2, 9, 8),) for _ in range(8)], (torch.randn(1, 5, 8),))
    held = [(torch.randn(2, 9, 8),) for _ in range(4)]
    measured = quantized.decisions[-1].after
    assert measured is not None
    with torch.no_grad():
        found = sqnr_db(torch.cat([model(*each) for each in held]), torch.cat([quantized(*each) for each in held]))
    assert abs(found - measured) < 6


@pytest.mark.parametrize("compare", [
    lambda y: y.sigmoid() > 0.5, lambda y: (y < 0.25).float(), lambda y: y >= -0.5, lambda y: y <= 0.125,
    lambda y: (y > -0.5) & (y < 0.5), lambda y: ~(y > 0.25),
])  # fmt: skip
def test_comparisons_are_zeros_and_ones(compare: Callable[[Tensor], Tensor]) -> None:
    """Segmentation masks by a threshold: exactly 0 and 1, wrong only where the compared number is next to the bound."""
    model = Function(lambda m, x: compare(m.conv(x)), conv=nn.Conv2d(3, 8, 3))
    data = images(8)
    quantized = check(model, data, least=10)
    found = torch.cat([quantized(*each) for each in data])
    assert set(found.unique().tolist()) == {0.0, 1.0}
    with torch.no_grad():
        wanted = torch.cat([model(*each) for each in data])
    assert float((found == wanted).float().mean()) > 0.98


def test_what_compares_to_bounds_is_exact_where_numbers_are() -> None:
    """At the bound itself, which bytes can hit."""
    bounds = {
        "gt": lambda x: x.float() > 100, "ge": lambda x: x.float() >= 100, "lt": lambda x: x.float() < 100,
        "le": lambda x: x.float() <= 100,
    }  # fmt: skip
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for compare in bounds.values():
        model = Function(lambda m, x, compare=compare: compare(x) * m.one(x / 255), one=nn.Conv2d(1, 1, 1))
        with torch.no_grad():
            model.one.weight.zero_()
            model.one.bias.fill_(1.0)
        quantized = kvant.quantize(model, x, calibration=[x], recipe=FAST)
        np.testing.assert_array_equal(quantized(x) > 0.5, compare(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_places_of_maxima_stay_int64(dtype: torch.dtype) -> None:
    model = Function(lambda m, x: m.conv(x).argmax(1).to(dtype), conv=nn.Conv2d(3, 8, 3))
    data = images(8)
    found = kvant.quantize(model, data[0], calibration=data, recipe=FAST)(*data[0])
    with torch.no_grad():
        wanted = model(*data[0])
    assert found.dtype == torch.int64
    assert float((found == wanted).float().mean()) > 0.95


def test_learned_queries_attend_to_features_and_places_are_counted() -> None:
    """DETR: the first query is a constant, and places are counted by a cumulative sum."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.conv(x).flatten(2).transpose(1, 2)
        places = torch.ones(x.shape[0], x.shape[1]).cumsum(1)[..., None] / x.shape[1]
        x = x + places
        query = m.queries.weight[None].expand(x.shape[0], -1, -1)
        return m.head(nn.functional.scaled_dot_product_attention(query, x, x))

    model = Function(forward, conv=nn.Conv2d(3, 16, 4, 4), queries=nn.Embedding(5, 16), head=nn.Linear(16, 4))
    quantized = check(model, images(8))
    assert quantized.graph.inputs[0].shape == (("batch",), 3, 16, 16)


@pytest.mark.parametrize("confidence", [1.0, 5.0, 20.0])
def test_logarithms_of_probabilities_that_are_tiny(confidence: float) -> None:
    """Classifiers trained with ``nll_loss`` end so; the logarithm of a softmax in integers had -4 dB."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.conv(x).relu().flatten(1) * confidence).log_softmax(1)

    check(Function(forward, conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8 * 14 * 14, 20)), images(8), least=22)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_slopes_of_channels_take_no_tables_of_16_bits(rank: int) -> None:
    prelu = nn.PReLU(5)
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor([0.25, -0.5, 1.0, 3.0, 0.0]))
    data = [(2 * torch.randn(2, 5, *(6, 7)[: rank - 2], generator=torch.Generator().manual_seed(n)),) for n in range(4)]
    quantized = check(prelu.eval(), data, least=60, recipe=Recipe(activations=ActivationScheme(16)))
    assert sum(value.size for value in quantized.graph.constants.values()) < 100
