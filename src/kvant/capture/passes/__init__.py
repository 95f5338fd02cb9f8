"""Passes: a float graph in, an equivalent simpler one out; the given graph is never changed."""

from kvant.capture.passes.batchnorm import fold_batch_norm, replace_batch_norm
from kvant.capture.passes.cleanup import fold_pads, merge_constants, remove_dead, remove_identities
from kvant.capture.passes.pointwise import fuse_clamps, fuse_pointwise
from kvant.capture.passes.saturation import bring_masks_near
from kvant.capture.passes.scales import fold_channel_scales, fold_input_scales
from kvant.graph import Graph, validate

__all__ = [
    "bring_masks_near",
    "fold_batch_norm",
    "fold_channel_scales",
    "fold_input_scales",
    "fold_pads",
    "fuse_clamps",
    "fuse_pointwise",
    "merge_constants",
    "prepare",
    "remove_dead",
    "remove_identities",
    "replace_batch_norm",
]

# Batch norm first: folding needs the convolution without its activation.
DEFAULT = (
    remove_dead, remove_identities, fold_batch_norm, replace_batch_norm, fold_pads, fuse_clamps, fold_channel_scales,
    fuse_pointwise, bring_masks_near, fold_input_scales, merge_constants, remove_dead,
)  # fmt: skip


def prepare(graph: Graph) -> Graph:
    """The graph that quantization starts from: the default sequence of all passes, and the result checked.

    Batch norm is folded, clamps are fused into their producers, chains of pointwise functions are one function each,
    and whatever does nothing is gone. Outputs keep their order and structure; a few change their tensors' names.
    """
    for step in DEFAULT:
        graph = step(graph)
    validate(graph)
    return graph
