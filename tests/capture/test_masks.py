"""Masks that come from inputs: what torch makes of booleans, the graph makes of zeros and ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvant.capture import Executor, capture
from kvant.errors import ShapeError, UnsupportedOperatorError

from .compare import Function, check, example

LENGTH = 6


def tokens(batch: int = 2, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Scores (N, length, length) and which tokens count (N, length), int64."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length // 2 :] = 0
    return example((batch, length, length)), mask


def transformers_mask(features: Tensor, mask: Tensor) -> Tensor:
    """What the transformers library (5) does: an index for every place of a mask (N, 1, length, length)."""
    batch, length = mask.shape
    allowed = mask.to(torch.bool)
    rows = torch.arange(batch)[:, None, None, None]
    queries, keys = torch.arange(length)[None, None, :, None], torch.arange(length)[None, None, None, :]
    combined = queries.new_ones((), dtype=torch.bool) & (queries >= 0) & allowed[rows, keys]
    combined = combined.expand(batch, -1, length, length)
    query = features[:, None]
    return F.scaled_dot_product_attention(query, query, query, attn_mask=combined)


USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda x, m: x * m.unsqueeze(-1).float(),
    "inverted": lambda x, m: (x + (1.0 - m[:, None, :].to(x.dtype)) * -10000.0).softmax(-1),
    "finfo": lambda x, m: (x + (1.0 - m[:, None].float()) * torch.finfo(torch.float32).min).softmax(-1),
    "bool": lambda x, m: x.masked_fill(~m.bool()[:, None], float("-inf")).softmax(-1),
    "zero": lambda x, m: x.masked_fill(m[:, None] == 0, -1e9).softmax(-1),
    "not zero": lambda x, m: torch.where(m.unsqueeze(-1) != 0, x, -x),
    "above": lambda x, m: torch.where((m > 0).unsqueeze(-1), x, torch.zeros(())),
    "and": lambda x, m: x.masked_fill(torch.logical_and(m.bool()[:, None], m.bool()[:, :, None]), 3.0),
    "or": lambda x, m: x.masked_fill(m.bool()[:, None] | m.bool()[:, :, None], 3.0),
    "and constant": lambda x, m: x.masked_fill(m.bool()[:, None] & torch.ones(1, dtype=torch.bool), 3.0),
    "or constant": lambda x, m: x.masked_fill(m.bool()[:, None] | torch.ones(1, dtype=torch.bool), 3.0),
    "not": lambda x, m: x * torch.logical_not(m.bool())[:, None].float(),
    "back": lambda x, m: x.masked_fill((1.0 - m[:, None].float()).bool(), torch.finfo(torch.float32).min).softmax(-1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_masks_from_inputs(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    graph = check(use, tokens(), tokens(3), tokens(1, 9))
    assert [entry.type.dtype for entry in graph.inputs] == ["float32", "int64"]


def test_masks_of_the_transformers_library() -> None:
    def inputs(batch: int, length: int) -> list[Tensor]:
        return [example((batch, length, 4)), tokens(batch, length)[1]]

    check(transformers_mask, inputs(2, 6), inputs(3, 9), inputs(1, 5))
    # Where the length is fixed, what counts along it is a constant.
    for dynamic in ("batch", "none"):
        graph = capture(Function(transformers_mask).eval(), inputs(2, 6), dynamic=dynamic)
        torch.testing.assert_close(Executor(graph).run(inputs(2, 6))[0], transformers_mask(*inputs(2, 6)))


def test_a_constant_mask_over_a_free_length() -> None:
    """The lower triangle that models keep in a buffer."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("allowed", torch.tril(torch.ones(16, 16))[None])

        def forward(self, x: Tensor) -> Tensor:
            length = x.shape[1]
            return x.masked_fill(self.allowed[:, :length, :length] == 0, float("-inf")).softmax(-1)

    check(Causal(), [tokens()[0]], [tokens(3, 11)[0]])


def test_a_mask_of_which_nothing_depends_on_the_input_leaves_the_batch_free() -> None:
    """As of vision transformers of transformers 5."""

    def forward(x: Tensor) -> Tensor:
        allowed = (torch.arange(LENGTH)[None, None, :, None] >= 0).expand(x.shape[0], -1, LENGTH, LENGTH)
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=allowed)

    graph = check(forward, [tokens()[0]], [tokens(5)[0]])
    assert not any(node.op.kind == "binary" for node in graph.nodes)


def test_token_types_that_are_all_alike() -> None:
    """BERT's: gathered from a buffer of zeros."""
    embedding = nn.Embedding(2, 4)

    class Types(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.types = nn.Embedding(30, 4), embedding
            self.register_buffer("zeros", torch.zeros(1, 64, dtype=torch.int64))
            self.register_buffer("places", torch.arange(64)[None])

        def forward(self, ids: Tensor) -> Tensor:
            batch, length = ids.shape
            types = torch.gather(self.zeros, 1, self.places[:, :length]).expand(batch, length)
            return self.words(ids) + self.types(types)

    ids = torch.randint(0, 30, (2, 7))
    check(Types(), [ids], [torch.randint(0, 30, (3, 11))])


def test_a_mask_of_other_integers_does_not_run() -> None:
    scores, mask = tokens()
    executor = Executor(capture(Function(USES["bool"]).eval(), [scores, mask]))
    with pytest.raises(ShapeError, match="index out of range"):
        executor.run([scores, mask * 2])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, m: x.masked_fill(x == 0.5, 0.0), "whether they equal another one than zero"),
    ],
    ids=["threshold"],
)
def test_what_is_no_mask_is_refused(function: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    scores, mask = tokens()
    with pytest.raises(UnsupportedOperatorError, match=message):
        capture(Function(function).eval(), [scores, mask * 7])
