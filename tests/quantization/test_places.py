"""Networks that sample, choose and count: what says where has 16 bits, and the integers do what torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kvant
from kvant import ActivationScheme, Recipe, Rule
from kvant.capture import capture, prepare
from kvant.graph import Graph, ops
from kvant.quantization.places import of_places
from kvant.runtime import QuantizedModel
from networks import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")


class SpatialTransformer(nn.Module):
    """Turns, moves and scales a picture by what a small network sees in it (Jaderberg et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.look = nn.Sequential(nn.Conv2d(2, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.where = nn.Linear(32, 6)
        self.where.bias.data = torch.tensor([0.9, 0.2, 0.1, -0.2, 0.9, -0.1])
        self.read = nn.Conv2d(2, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(self.look(x)).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 2, 24, 24], align_corners=False)
        return self.read(F.grid_sample(x, grid, align_corners=False))


class DeformableAttention(nn.Module):
    """Each query reads a few places of two maps, around its own (Zhu et al. 2021)."""

    SIZES = ((12, 16), (6, 8))
    HEADS, POINTS, WIDTH = 2, 4, 16

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        count = self.HEADS * len(self.SIZES) * self.POINTS
        self.values, self.offsets = nn.Linear(self.WIDTH, self.WIDTH), nn.Linear(self.WIDTH, 2 * count)
        self.weights, self.out = nn.Linear(self.WIDTH, count), nn.Linear(self.WIDTH, self.WIDTH)
        self.reference = nn.Linear(self.WIDTH, 2)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        batch, count, width = queries.shape
        levels, shape = len(self.SIZES), (batch, count, self.HEADS, len(self.SIZES), self.POINTS)
        offsets = self.offsets(queries).view(*shape, 2)
        weights = self.weights(queries).view(*shape[:3], -1).softmax(-1).view(shape)
        sizes = torch.tensor([[w, h] for h, w in self.SIZES])
        places = self.reference(queries).sigmoid()[:, :, None, None, None] + offsets / sizes[:, None]
        parts = self.values(tokens).view(batch, -1, self.HEADS, width // self.HEADS)
        sampled = []
        for level, part in enumerate(parts.split([h * w for h, w in self.SIZES], 1)):
            image = part.flatten(2).transpose(1, 2).reshape(batch * self.HEADS, -1, *self.SIZES[level])
            grid = (2 * places[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(image, grid, align_corners=False))
        weights = weights.transpose(1, 2).reshape(batch * self.HEADS, 1, count, levels * self.POINTS)
        found = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)
        return self.out(found.view(batch, width, count).transpose(1, 2))


class Detector(nn.Module):
    """The best cells of a map, and what is read there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 2, 1), nn.ReLU())
        self.score, self.box = nn.Linear(12, 3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.features(x).flatten(2).transpose(1, 2)
        best = self.score(cells).max(-1).values.topk(5, dim=1)[1]
        chosen = cells.gather(1, best.unsqueeze(-1).repeat(1, 1, cells.shape[-1]))
        return self.box(chosen), best


def inputs(kind: str, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels: int, size: tuple[int, int]) -> Tensor:
        rough = torch.randn(1, channels, 4, 4, generator=generator)
        return F.interpolate(rough, size, mode="bicubic", align_corners=False)

    if kind == "transformer":
        return (smooth(2, (32, 32)),)
    if kind == "detector":
        return (smooth(3, (32, 24)),)
    maps = [smooth(16, size).flatten(2).transpose(1, 2) for size in DeformableAttention.SIZES]
    return torch.randn(1, 10, 16, generator=generator), torch.cat(maps, 1)


MODELS = {"transformer": SpatialTransformer, "attention": DeformableAttention, "detector": Detector}


def quantized(kind: str, recipe: Recipe | None = None) -> tuple[nn.Module, QuantizedModel]:
    model = MODELS[kind]().eval()
    data = [inputs(kind, seed) for seed in range(12)]
    return model, kvant.quantize(model, data[0], calibration=data, recipe=recipe)


def arrays(kind: str, seed: int) -> list[np.ndarray]:
    return [value.numpy() for value in inputs(kind, seed)]


def same_bits(found: QuantizedModel, given: list[np.ndarray]) -> None:
    for backend in ("reference", "native"):
        again = QuantizedModel(found.graph, backend=backend)(*given)
        first, second = (value if isinstance(value, list | tuple) else [value] for value in (found(*given), again))
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["transformer", "attention"])
def test_sampling_networks_are_accurate(kind: str) -> None:
    model, found = quantized(kind)
    for seed in (100, 101):
        given = inputs(kind, seed)
        assert sqnr_db(model(*given), torch.from_numpy(np.asarray(found(*arrays(kind, seed))))) > 25
    same_bits(found, arrays(kind, 102))


@pytest.mark.parametrize("kind", ["transformer", "attention"])
def test_grids_have_16_bits_where_nothing_else_has(kind: str) -> None:
    model, found = quantized(kind, Recipe(target_sqnr=None))
    for node in found.graph.nodes:
        if isinstance(node.op, ops.GridSample):
            assert found.graph.types[node.inputs[1]].dtype == "int16"
        if isinstance(node.op, ops.Softmax | ops.Conv) and node.output in found.graph.types:
            assert found.graph.types[node.inputs[0]].dtype == "uint8"
    given = inputs(kind, 100)
    assert sqnr_db(model(*given), torch.from_numpy(np.asarray(found(*arrays(kind, 100))))) > 20


def test_rules_may_give_grids_8_bits_and_lose_much() -> None:
    coarse = Recipe(target_sqnr=None, rules=(Rule(r"*", activations=ActivationScheme(bits=8)),))
    model, found = quantized("attention", coarse)
    _, fine = quantized("attention", Recipe(target_sqnr=None))
    given = inputs("attention", 100)
    noise = [
        sqnr_db(model(*given), torch.from_numpy(np.asarray(each(*arrays("attention", 100))))) for each in (found, fine)
    ]
    assert noise[0] < noise[1] - 2


def float_graph(kind: str) -> Graph:
    return prepare(capture(MODELS[kind]().eval(), list(inputs(kind, 0))))


def test_places_are_what_they_are_computed_from() -> None:
    graph = float_graph("attention")
    made = {name: node for name, node in graph.producers().items() if name in of_places(graph)}
    layers = [node for node in made.values() if isinstance(node.op, ops.Linear)]
    assert sorted(node.source.module.rpartition(".")[2] for node in layers) == ["offsets", "reference"]
    assert not any(isinstance(node.op, ops.Softmax) for node in made.values())


def test_scores_by_which_something_is_chosen_are_places() -> None:
    graph = float_graph("detector")
    modules = {graph.producers()[name].source.module.rpartition(".")[2] for name in of_places(graph)}
    assert "score" in modules and "box" not in modules


def test_what_is_chosen_by_size() -> None:
    model, found = quantized("detector")
    chosen = 0
    for seed in range(100, 106):
        boxes, best = model(*inputs("detector", seed))
        got_boxes, got_best = found(*arrays("detector", seed))
        assert got_best.dtype == np.int64
        same = torch.from_numpy(np.asarray(got_best)) == best
        chosen += int(same.sum())
        if bool(same.all()):
            assert sqnr_db(boxes, torch.from_numpy(np.asarray(got_boxes))) > 25
    assert chosen >= 24  # of 30
    same_bits(found, arrays("detector", 107))
    # Noise is that of what is made of the same choices: the order of nearly equal scores asks for no bits.
    assert found.decisions[-1].after is not None and found.decisions[-1].after > 25


def test_positions_of_tokens_and_labels_are_exact() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.places = nn.Embedding(30, 16), nn.Embedding(20, 16)
            self.head = nn.Linear(16, 7)

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mask = ids.ne(1).int()
            positions = (mask.cumsum(1) * mask).long() + 1
            y = self.head(self.words(ids) + self.places(positions))
            return y, positions, torch.cat([y.amax(-1) / 100, y.argmax(-1).float()], 1)

    def ids(length: int, seed: int) -> Tensor:
        found = torch.randint(2, 30, (1, length), generator=torch.Generator().manual_seed(seed))
        found[:, length - 3 :] = 1
        return found

    model = Tokens().eval()
    found = kvant.quantize(model, ids(8, 0), calibration=[ids(8, seed) for seed in range(16)])
    for length in (8, 13):
        given = ids(length, 50)
        wanted, got = model(given), [torch.from_numpy(np.asarray(value)) for value in found(given.numpy())]
        assert sqnr_db(wanted[0], got[0]) > 25
        assert torch.equal(wanted[1], got[1])
        # Labels beside scores: joined in float32, they are exact.
        assert torch.equal(got[2][:, length:], got[0].argmax(-1).float())
    same_bits(found, [ids(8, 51).numpy()])
