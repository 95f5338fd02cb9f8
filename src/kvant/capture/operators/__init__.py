"""The operator tables, one module for each family; importing them fills ``kvant.capture.registry``."""

from kvant.capture.operators import (
    attention,
    convolution,
    elementwise,
    indexing,
    linear,
    masks,
    normalization,
    padding,
    patches,
    places,
    pooling,
    reduction,
    resize,
    shape,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "masks",
    "normalization",
    "padding",
    "patches",
    "places",
    "pooling",
    "reduction",
    "resize",
    "shape",
]
