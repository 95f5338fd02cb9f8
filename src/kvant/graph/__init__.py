"""The graph: one data structure for float and quantized networks, its rules, and the shapes of its tensors."""

from kvant.graph import ops
from kvant.graph.dims import Dim, combine, evaluate, is_symbol, show, show_shape, symbols
from kvant.graph.graph import (
    DTYPES,
    FLOAT32,
    DType,
    Graph,
    Input,
    Node,
    Quantization,
    Source,
    Structure,
    TensorType,
)
from kvant.graph.infer import bind, example_shapes, infer_node, infer_shapes, slice_bounds, window_count
from kvant.graph.pointwise import PRELU
from kvant.graph.pointwise import evaluate as evaluate_program
from kvant.graph.validate import validate

__all__ = [
    "DTYPES", "FLOAT32", "PRELU", "DType", "Dim", "Graph", "Input", "Node", "Quantization", "Source", "Structure",
    "TensorType", "bind", "combine", "evaluate", "evaluate_program", "example_shapes", "infer_node", "infer_shapes",
    "is_symbol", "ops", "show", "show_shape", "slice_bounds", "symbols", "validate", "window_count",
]  # fmt: skip
