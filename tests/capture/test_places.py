"""What is chosen by index or size, counted, or sampled at computed places: the graph does what torch does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvant.capture import Executor, capture, prepare
from kvant.errors import UnsupportedOperatorError
from kvant.graph import ops

from .compare import Function, check, example

PAD = 1


def ids(batch: int = 1, length: int = 6, seed: int = 0) -> Tensor:
    """Token ids; those of the last sentence end early."""
    found = torch.randint(2, 40, (batch, length), generator=torch.Generator().manual_seed(seed))
    found[-1, length - 2 :] = PAD
    return found


def numbers(graph: object, kind: type[ops.Op]) -> int:
    return sum(isinstance(node.op, kind) for node in graph.nodes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [False, True])
def test_sampled_images(mode: str, padding: str, align: bool) -> None:
    def forward(x: Tensor, flow: Tensor) -> Tensor:
        return F.grid_sample(x, 1.3 * torch.tanh(flow).permute(0, 2, 3, 1), mode, padding, align)

    graph = check(forward, *[(example((n, 3, 8, 9)), example((n, 2, h, w), 1)) for n, h, w in ((1, 6, 5), (2, 9, 12))])
    assert numbers(graph, ops.GridSample) == 1
    assert [dim for dim in graph.inputs[1].shape if isinstance(dim, tuple)]


def test_affine_grids() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.where = nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            theta = self.where(x.mean((2, 3))).view(-1, 2, 3)
            return F.grid_sample(x, F.affine_grid(theta, list(x.shape), False), align_corners=False)

    check(Turned(), [example((1, 12, 5, 7))], [example((3, 12, 5, 7))])


def test_volumes_are_not_sampled() -> None:
    grid = torch.zeros(1, 2, 2, 2, 3)
    with pytest.raises(UnsupportedOperatorError, match=r"images .N, C, H, W. are sampled"):
        capture(
            Function(lambda x: F.grid_sample(x, grid + x.mean(), align_corners=False)).eval(),
            [example((1, 1, 3, 3, 3))],
        )


CHOICES: dict[str, Callable[[Tensor], object]] = {
    "topk": lambda x: x.topk(3),
    "smallest": lambda x: x.topk(2, dim=1, largest=False),
    "sort": lambda x: x.sort(dim=1, descending=True),
    "argsort": lambda x: x.argsort(-1),
    "indices alone": lambda x: x.max(-1).values.topk(2, dim=1)[1],
    "best rows": lambda x: x.gather(1, x[..., 0].topk(2, dim=1)[1].unsqueeze(-1).repeat(1, 1, x.shape[-1])),
    "expanded": lambda x: x.gather(1, x[..., 0].topk(2, dim=1)[1].unsqueeze(-1).expand(-1, -1, x.shape[-1])),
    "element and class": lambda x: torch.cat(
        [(place // 8).unsqueeze(-1) + (place % 8).unsqueeze(-1) for place in [x.flatten(1).topk(4)[1]]], -1
    ),
    "points": lambda x: x[torch.arange(x.shape[0]).unsqueeze(-1), x[..., 0].topk(2)[1]],
}


@pytest.mark.parametrize("use", CHOICES.values(), ids=CHOICES.keys())
def test_choices(use: Callable[[Tensor], object]) -> None:
    graph = check(use, [example((1, 6, 8))], [example((3, 6, 8), 1)])
    assert graph.inputs[0].shape[0] == ("batch",)


def test_one_index_serves_all_features() -> None:
    graph = prepare(check(CHOICES["best rows"], [example((1, 6, 8))]))
    (pick,) = (node for node in graph.nodes if isinstance(node.op, ops.GatherElements))
    places = Executor(graph)
    seen: dict[str, Tensor] = {}
    places.run([example((1, 6, 8))], seen.__setitem__)
    assert seen[pick.inputs[1]].shape == (1, 2, 1)


ELEMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "computed": lambda x, i: x.gather(2, i),
    "along an axis": lambda x, i: x.take_along_dim(i, 2) + x.take_along_dim(x.argmax(1, keepdim=True), 1)[..., :4],
    "fewer rows": lambda x, i: x.gather(2, i[:, :2]),
    "one row": lambda x, i: x.gather(1, i[:, :1, :3]),
    "constant": lambda x, i: x.gather(2, torch.tensor([[[0, 2, 4], [1, 1, 7]]]).expand(x.shape[0], -1, -1)),
    "of a constant": lambda x, i: torch.linspace(0, 1, 12).view(1, 3, 4).expand(2, -1, -1).gather(2, i[:2, :3] % 4) * 2,
}


@pytest.mark.parametrize("use", ELEMENTS.values(), ids=ELEMENTS.keys())
def test_elements_by_index(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    def inputs(seed: int) -> list[Tensor]:
        index = torch.randint(0, 3, (2, 5, 4), generator=torch.Generator().manual_seed(seed))
        return [example((2, 5, 8), seed), index]

    check(use, inputs(0), inputs(1))


def test_positions_of_tokens() -> None:
    """RoBERTa counts those tokens that are no padding."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            mask = tokens.ne(PAD).int()
            return self.table((torch.cumsum(mask, 1).type_as(mask) * mask).long() + PAD)

    graph = check(Positions(), [ids()], [ids(3)], [ids(2, 11)])
    assert graph.inputs[0].shape == (("batch",), ("length",))


INTEGERS: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda i: (2 * i - 5) * i + 1,
    "divided": lambda i: i // 3 - (i - 20) // 7 + (i - 20) % 7,
    "rounded down": lambda i: torch.div(i - 20, 3, rounding_mode="floor"),
    "clamped": lambda i: (i - 9).clamp(-2, 5) + i.clamp_min(7) + i.clamp(max=30),
    "bounded": lambda i: torch.minimum(i, (40 - i)) + torch.maximum(i, torch.tensor(9)),
    "summed": lambda i: i.sum(1) + i.sum((0, 1)) + i.sum(-1, keepdim=True).sum(),
    "negative": lambda i: 3 - i + (-i) - (i - 9).abs() * (i - 9).sign(),
    "filled": lambda i: torch.zeros_like(i) + torch.full(i.shape, 7) * i + torch.ones(i.shape, dtype=torch.int32),
    "joined": lambda i: torch.cat([(i > 9).long(), i], 1).clamp_min(1) + torch.cat([(i > 9).long(), i], 1).ne(5),
    "repeated": lambda i: i[:1].repeat(i.shape[0], 1) + torch.tensor([[1], [2]]).repeat(i.shape[0], 1)[: i.shape[0]],
    "chosen": lambda i: torch.where(i > 9, i, 7 - i) + i.masked_fill(i == PAD, 99),
    "counted": lambda i: i.cumsum(0) + i.cumsum(-1),
    "places": lambda i: i.argmax(1) + (i == 1).int().argmax(-1) * 100,
    "compared": lambda i: (i < (40 - i)).long() + (i >= 20).int() + (i == i).long() + ((40 - i) != i).long(),
    "masks summed": lambda i: (i != PAD).sum(-1) + (i > 5).long().sum(-1),
    "masks": lambda i: ((i > 9) * (i < 30)).long() + ((i > 9) + (i == 3)).long() + (i - 2).bool().long(),
    "ramp": lambda i: torch.arange(i.shape[1]) * 2 - i,
    "relative": lambda i: (
        (torch.arange(i.shape[1])[:, None] - torch.arange(i.shape[1])[None]).clamp(-3, 3) + i[:, None]
    ),
}


@pytest.mark.parametrize("use", INTEGERS.values(), ids=INTEGERS.keys())
def test_integers_are_exact(use: Callable[[Tensor], Tensor]) -> None:
    model = Function(use).eval()
    graph = capture(model, [ids()])
    assert graph.inputs[0].shape == (("batch",), ("length",))
    for tokens in (ids(), ids(3), ids(2, 9)):
        (found,) = Executor(graph).run([tokens])
        assert found.dtype == torch.int64
        assert torch.equal(found, model(tokens))


def test_relative_positions_at_any_length() -> None:
    """DeBERTa takes of the scores against all distances those that occur."""

    def forward(x: Tensor) -> Tensor:
        length = x.shape[1]
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        places = (distance + 4).clamp(0, 7)
        return torch.gather(x, -1, places.unsqueeze(0).expand(x.shape[0], -1, -1))

    graph = check(forward, [example((1, 6, 8))], [example((2, 9, 8))])
    assert graph.inputs[0].shape[:2] == (("batch",), ("length",))


def test_running_sums_of_numbers() -> None:
    check(
        lambda x: x.cumsum(1) + x.cumsum(-1) + (x > 0).cumsum(1)[:, :1].clamp(1, 1).bool().float(),
        [example((1, 4, 5))],
        [example((2, 4, 5))],
    )


NUMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "converted": lambda x, i: x * i.float(),
    "promoted": lambda x, i: x * (i + 1) - i,
    "a quotient": lambda x, i: x + i / 2,
    "from the end": lambda x, i: x + torch.linspace(0, 1, 40)[i - 39],
    "counted": lambda x, i: (x * i.ne(PAD)).sum(1) / i.ne(PAD).sum(1),
    "joined": lambda x, i: torch.cat([x, (x.topk(3)[1] // 2).float()], 1),
}


@pytest.mark.parametrize("use", NUMBERS.values(), ids=NUMBERS.keys())
def test_integers_as_numbers(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    check(use, [example((2, 6)), ids(2)], [example((3, 6), 1), ids(3)])


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], object], str]] = {
    "half an integer": (lambda x, i: torch.div(i, 2, rounding_mode="trunc"), "without rounding down"),
    "an integer and a half": (lambda x, i: x * (i > 2.5).float(), "numbers that are no integers"),
    "compared numbers": (lambda x, i: torch.where(x > x.flip(1), x, -x), "no integers with each other"),
    "remainders": (lambda x, i: x % 2, "no integers"),
    "the largest integers": (lambda x, i: i.topk(2), "among int64"),
}


@pytest.mark.parametrize(("use", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_integers_cannot_do(use: Callable[[Tensor, Tensor], object], message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message):
        capture(Function(use).eval(), [example((2, 6)), ids(2)])
