"""From nodes to steps: one short rule for each operator, once the shapes of all tensors are known."""

from __future__ import annotations

from collections.abc import Callable

from kvant.errors import AccumulatorOverflowError, GraphError
from kvant.graph import Node, ops
from kvant.runtime.lower import elementwise, movement, rows, weighted, windows
from kvant.runtime.lower.context import Context
from kvant.runtime.lower.weighted import prepare

__all__ = ["Context", "lower", "prepare"]

_RULES: dict[type, Callable[..., None]] = {
    ops.Quantize: elementwise.quantize, ops.Dequantize: elementwise.dequantize, ops.Requantize: elementwise.requantize,
    ops.Table: elementwise.table, ops.Binary: elementwise.binary, ops.Conv: weighted.conv,
    ops.ConvTranspose: weighted.conv_transpose, ops.Linear: weighted.linear, ops.MatMul: weighted.matmul,
    ops.Concat: movement.concat, ops.Slice: movement.slice_, ops.Reshape: movement.reshape,
    ops.Transpose: movement.transpose, ops.Expand: movement.expand, ops.Pad: movement.pad,
    ops.Gather: movement.gather, ops.MaxPool: windows.max_pool, ops.AveragePool: windows.average_pool,
    ops.AdaptivePool: windows.adaptive_pool, ops.Resize: windows.resize, ops.Reduce: rows.reduce,
    ops.Softmax: rows.softmax, ops.LayerNorm: rows.layer_norm, ops.GroupNorm: rows.group_norm, ops.ArgMax: rows.arg_max,
    ops.GatherElements: movement.gather_elements, ops.TopK: rows.top_k, ops.CumSum: rows.cum_sum,
    ops.IntBinary: elementwise.int_binary, ops.Real: elementwise.real, ops.GridSample: windows.grid_sample,
}  # fmt: skip


def lower(context: Context, node: Node) -> None:
    """Append the steps of ``node`` to ``context``.

    Raises:
        GraphError: naming the node, where the runtime has no integer arithmetic for it.
    """
    rule = _RULES.get(type(node.op))
    if rule is None:
        raise GraphError(f"{node.describe()} belongs to float graphs; quantize the graph before running it")
    try:
        rule(context, node, node.op)
    except (GraphError, AccumulatorOverflowError) as error:
        raise type(error)(f"{node.describe()}: {error}") from error
