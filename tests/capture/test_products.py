"""Products and convolutions by oneDNN against float64, and their gradients, on one thread and on two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from kvant.capture.products import convolution, product
from kvant.graph import ops


@pytest.fixture(params=[(True, 1), (True, 2), (False, 1)], ids=["oneDNN, 1 thread", "oneDNN, 2 threads", "torch"])
def library(request: pytest.FixtureRequest) -> Iterator[bool]:
    onednn, threads = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.backends.mkldnn.flags(enabled=onednn, allow_tf32=None):
        yield onednn
    torch.set_num_threads(before)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("pads", [(0, 0), (1, 2)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("shape", [(1, 40, 25, 30), (3, 5, 1, 1), (20, 8, 7, 6), (1, 1, 2, 3)])
def test_pointwise_convolutions(
    library: bool, shape: tuple[int, ...], strides: tuple[int, int], pads: tuple[int, int]
) -> None:
    op = ops.Conv(strides, pads, pads, (1, 1), 1)
    x, weight, bias = random(*shape).requires_grad_(), random(9, shape[1], 1, 1).requires_grad_(), random(9)
    found = convolution(op, weight)(x, weight, bias, strides, pads, (1, 1), 1)
    exact = [each.detach().double().requires_grad_() for each in (x, weight)]
    wanted = F.conv2d(*exact, bias.double(), strides, pads)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    direction = random(*found.shape)
    got = torch.autograd.grad(found, (x, weight), direction)
    for one, other in zip(got, torch.autograd.grad(wanted, exact, direction.double()), strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("groups", "rows", "columns", "shared"), [(1, 7, 5, 300), (1, 1, 1, 1), (1, 64, 130, 9), (3, 4, 6, 8)]
)
def test_products(library: bool, groups: int, rows: int, columns: int, shared: int) -> None:
    left, right = random(groups, rows, shared), random(groups, shared, columns).mT
    found = product(left, right)
    assert found.is_contiguous() and found.shape == (groups, rows, columns)
    torch.testing.assert_close(found.double(), left.double() @ right.double().mT, atol=1e-4, rtol=1e-5)


def test_onednn_convolves_where_it_is_there_and_allowed(library: bool) -> None:
    pointwise = ops.Conv((1, 1), (0, 0), (0, 0), (1, 1), 1)
    chosen = convolution(pointwise, random(4, 4, 1, 1))
    assert (chosen is not F.conv2d) == (library and torch.backends.mkldnn.is_available())
    assert convolution(pointwise, random(4, 4, 3, 1)) is F.conv2d
