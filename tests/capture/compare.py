"""What the tests of capture share: run a module and its graph on the same inputs and compare."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from kvant.capture import Executor, capture, prepare
from kvant.graph import Graph


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> object:
        return self.function(*tensors)


def flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    entries = value.values() if isinstance(value, dict) else value
    assert isinstance(entries, Iterable)
    return [tensor for entry in entries for tensor in flat(entry)]


def example(shape: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compare(model: nn.Module, graph: Graph, inputs: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        expected = flat(model(*[value.clone() for value in inputs]))
    for name, candidate in (("captured", graph), ("prepared", prepare(graph))):
        got = Executor(candidate).run(inputs)
        assert len(got) == len(expected)
        for have, want in zip(got, expected, strict=True):
            assert have.shape == want.shape, name
            scale = max(1.0, float(want.abs().max()))
            assert torch.allclose(have, want, atol=tolerance * scale, rtol=tolerance), (
                f"{name}: differs by {float((have - want).abs().max())} of {scale}"
            )


def check(
    subject: nn.Module | Callable[..., object],
    inputs: Sequence[Tensor],
    *others: Sequence[Tensor],
    tolerance: float = 1e-5,
) -> Graph:
    """Capture a module or function, and compare at the example's sizes and at others; returns the captured graph."""
    model = subject if isinstance(subject, nn.Module) else Function(subject)
    model.eval()
    graph = capture(model, inputs)
    for values in (inputs, *others):
        compare(model, graph, values, tolerance)
    return graph


def realistic(model: nn.Module) -> nn.Module:
    """Batch-norm statistics such as training leaves behind, drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model
