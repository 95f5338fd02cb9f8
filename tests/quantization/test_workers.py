"""Samples side by side: in order, on one thread each, and the same file from any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kvant
from kvant.quantization.workers import in_order, one_thread_each


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_come_in_order_and_workers_use_one_thread() -> None:
    with one_thread_each():
        found = list(in_order(lambda item: (item, torch.get_num_threads()), range(20)))
    assert found == [(item, 1) for item in range(20)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_few_items_are_read_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with one_thread_each():
        first = next(results := in_order(abs, items()))
        assert first == 0
        assert len(taken) <= 4
        assert sum(results) == sum(range(100))


@pytest.mark.usefixtures("two_threads")
def test_an_error_arrives_and_threads_are_given_back() -> None:
    def broken(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"), one_thread_each():
        list(in_order(broken, range(100)))
    assert torch.get_num_threads() == 2


def test_without_workers_items_are_computed_here() -> None:
    assert list(in_order(str, [1, 2])) == ["1", "2"]


class Residual(torch.nn.Module):
    """Sums long enough that torch splits them among threads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 64, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.second = torch.nn.Conv2d(64, 64, 1)
        self.last = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.second(self.depthwise(x)))
        return self.last(x.mean((2, 3)))


@pytest.mark.usefixtures("two_threads")
def test_the_file_depends_neither_on_threads_nor_on_the_order_of_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Residual().eval()
    pictures = list(torch.randn(24, 3, 40, 40).split(1))
    # No 8-bit type reaches this: everything that decides runs.
    recipe = kvant.Recipe(target_sqnr=60.0)

    def file(threads: int, data: list[torch.Tensor]) -> bytes:
        torch.set_num_threads(threads)
        kvant.quantize(net, pictures[0], calibration=data, recipe=recipe).save(tmp_path / "file.kvant")
        return (tmp_path / "file.kvant").read_bytes()

    wanted = file(1, pictures)
    assert file(2, pictures) == wanted
    assert file(3, pictures[::-1]) == wanted
