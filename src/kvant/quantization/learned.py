"""Learned rounding: which of a weight's two neighbours is better for the layer's output, found by gradient descent.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound): every weight lies at
lower + h(V) (upper - lower) with a rectified sigmoid h; V falls with the squared error of the layer's output, what it
reads being what the quantized network makes, and a regularizer that is annealed pushes h to 0 or 1. The squared error
is a quadratic form of the inputs' second moments, so each step sees all positions of all samples at once. The
activation behind the layer is not part of the error. What descent leaves is finished by single changes that help.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kvant.quantization.rounding import Moments, damped
from kvant.quantization.weights import QuantizedWeight

# The rectified sigmoid reaches so far beyond 0 and 1.
_STRETCH = 0.1
STEPS = 400
# The budget of a layer in multiplications: time, but the same on every machine. At least LEAST_STEPS are taken.
BUDGET = 2e11
LEAST_STEPS = 80
RATE = 0.1
# What an undecided weight costs beside its share of the error of rounding to nearest.
UNDECIDED = 2.0
_WARM_UP = 0.2
_SHARPEST, _BLUNTEST = 20.0, 2.0


def learned(weight: np.ndarray, nearest: QuantizedWeight, moments: Moments) -> QuantizedWeight:
    """Round ``weight`` (O, ...) up or down on the grid of ``nearest`` so that the layer's output errs least.

    Args:
        weight: float32.
        nearest: rounded half to even; of each row that errs less than the learned one it stays.
        moments: of the layer's inputs.
    """
    # The correction of biases runs in inference mode, whose tensors have no gradients; copies of them do.
    with torch.inference_mode(False):
        problem = _Problem(weight, moments)
        flat = torch.from_numpy(weight.reshape(len(weight), -1))
        start = torch.from_numpy(nearest.values.reshape(flat.shape)).to(flat.dtype)
        scale = torch.from_numpy(nearest.scale)[:, None]
        lower, upper = nearest.grid.neighbours(flat / scale)
        before = problem.error(start * scale)
        up = _decided(problem, flat / scale, lower, upper, scale, before)
        values = _flipped(problem, up, lower, upper, scale)
        better = problem.error(values * scale) < before
        values = torch.where(better[:, None], values, start)
    return replace(nearest, values=values.numpy().astype(nearest.values.dtype).reshape(weight.shape))


def _flipped(
    problem: _Problem, up: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The integers (O, K) after each row made, one by one, the single changes that lower its error most."""
    up, change = up.clone(), (upper - lower) * scale
    curvature = problem.hessian.diagonal(dim1=1, dim2=2)[:, None].expand_as(problem.best).reshape(up.shape)
    slope = problem.slope(torch.where(up, upper, lower) * scale)
    rows = torch.arange(len(up))
    hessian = (
        problem.hessian.repeat_interleave(len(up) // len(problem.hessian), 0) if len(problem.hessian) > 1 else None
    )
    for _ in range(up.shape[1]):
        step = torch.where(up, -change, change)
        gain, at = (2 * step * slope + step.square() * curvature).min(1)
        worse = gain >= 0
        if bool(worse.all()):
            break
        moved = torch.where(worse, 0, step[rows, at])
        up[rows, at] ^= ~worse
        slope += moved[:, None] * (problem.hessian[0, at] if hessian is None else hessian[rows, at])
    return torch.where(up, upper, lower)


class _Problem:
    """The squared error of a layer's output as a function of its weights (O, K), but for a constant."""

    def __init__(self, weight: np.ndarray, moments: Moments) -> None:
        hessian = damped(moments)
        rows = torch.from_numpy(weight.reshape(*hessian.shape[:1], -1, hessian.shape[1])).double()
        # The float weight with the float inputs is what is wanted.
        wanted = rows @ hessian + moments.lack
        least = torch.linalg.solve(hessian, wanted.transpose(1, 2)).transpose(1, 2)
        self.best = least.float()
        self.hessian = hessian.float()

    def error(self, weight: torch.Tensor) -> torch.Tensor:
        """(O): each row's error beyond the least that any weights have."""
        apart = weight.reshape(self.best.shape) - self.best
        squares: torch.Tensor = ((apart @ self.hessian) * apart).sum(2)
        return squares.reshape(-1)

    def slope(self, weight: torch.Tensor) -> torch.Tensor:
        """(O, K): half the error's derivative by each weight."""
        apart = weight.reshape(self.best.shape) - self.best
        return torch.matmul(apart, self.hessian).reshape(weight.shape)

    def steps(self) -> int:
        """As many as the budget allows."""
        cost = 3.0 * self.best.numel() * self.best.shape[2]
        return int(min(STEPS, max(BUDGET / cost, LEAST_STEPS)))


def _decided(
    problem: _Problem,
    x: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    scale: torch.Tensor,
    nearest: torch.Tensor,
) -> torch.Tensor:
    """Whether each weight is to be rounded up: bool (O, K).

    Args:
        x: the weights over their scales.
        nearest: the error of rounding to nearest, by row.
    """
    gap = upper - lower
    share = torch.where(gap > 0, (x - lower) / gap.clamp_min(1e-9), torch.zeros_like(x)).clamp(0, 1)
    logits = torch.logit((share + _STRETCH) / (1 + 2 * _STRETCH)).requires_grad_()
    optimizer = torch.optim.Adam([logits], RATE)
    weight = x.shape[1] / nearest.clamp_min(1e-30)
    steps = problem.steps()
    with torch.enable_grad():
        for step in range(steps):
            optimizer.zero_grad()
            open_ = (torch.sigmoid(logits) * (1 + 2 * _STRETCH) - _STRETCH).clamp(0, 1)
            loss = (problem.error((lower + open_ * gap) * scale) * weight).sum()
            done = (step / steps - _WARM_UP) / (1 - _WARM_UP)
            if done >= 0:
                power = _BLUNTEST + (_SHARPEST - _BLUNTEST) * (1 - done)
                loss = loss + UNDECIDED * (1 - (2 * open_ - 1).abs().pow(power)).sum()
            torch.autograd.backward(loss)
            optimizer.step()
    return logits.detach() >= 0
