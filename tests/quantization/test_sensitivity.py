"""The noise that gradients predict against the noise that errors make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kvant.quantization.sensitivity import noise_of

COUNT = 12


class Plain:
    """Weighs all noise alike, so that noise over signal is its sum of squares."""

    def random_direction(self, at: int, outputs: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        return (outputs[0] * torch.randn(outputs[0].shape, generator=generator)).sum()


def test_one_direction_tells_each_samples_noise() -> None:
    """Of a convolution, whose noise by an error of its input does not depend on the input."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 32, 3, 3, generator=generator)
    for _ in range(COUNT):
        x, wrong = (torch.randn(1, 32, 20, 20, generator=generator) for _ in range(2))
        leaf = x.requires_grad_()
        found = noise_of(
            lambda _, leaf=leaf: ([F.conv2d(leaf, weight)], {"x": leaf}),
            lambda name, values, wrong=wrong: wrong,
            Plain(),  # type: ignore[arg-type]
            [[x]],
            1,
        )
        made = float(F.conv2d(wrong, weight).square().sum())
        assert made / 2 < found["x"] < made * 2
