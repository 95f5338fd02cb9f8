"""Where multiplications are many: oneDNN's products instead of those that torch would choose.

On one thread torch multiplies matrices, and convolves by kernels of 1 x 1, by a BLAS. MKL, which its builds for x86
come with, uses half of the vector width on processors that are not Intel's; oneDNN, which they come with as well, all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kvant.graph import ops

Convolution = Callable[..., Tensor]


def convolution(op: ops.Conv, weight: Tensor | None) -> Convolution:
    """The function that convolves like ``op``: called as ``torch.nn.functional.conv2d``."""
    if len(op.strides) == 1:
        return F.conv1d
    pointwise = weight is not None and weight.shape[2:] == (1, 1) and op.groups == 1
    return _onednn if pointwise and _has_onednn() else F.conv2d


def product(a: Tensor, b: Tensor) -> Tensor:
    """(G, M, N) from (G, M, R) and (G, N, R): the matrix of all rows of ``a`` times all rows of ``b``.

    >>> product(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])).tolist()
    [[[11.0, 17.0]]]
    """
    if len(a) > 1 or not _has_onednn():
        return a @ b.mT
    # A convolution of one row of pixels, a column of ``a`` in each channel; its channels lie side by side.
    a, b = a.contiguous(), b.contiguous()
    _, width, channels = a.shape
    pixels = a.as_strided((1, channels, 1, width), (a.numel(), 1, a.numel(), channels))
    return _onednn(pixels, b[0, :, :, None, None], None, (1, 1), (0, 0), (1, 1), 1)[:, :, 0].mT


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)  # type: ignore[no-untyped-call]


def _onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    # Kernels of 1 x 1 have no dilation, but only where there is one do gradients go to oneDNN as well.
    return torch.mkldnn_convolution(x, weight, bias, pads, strides, (2, 2), 1)
