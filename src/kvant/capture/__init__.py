"""From a PyTorch module to a float graph: capture, the passes that simplify it, and its execution in float32."""

from kvant.capture.builder import MASKED
from kvant.capture.capture import capture
from kvant.capture.checkpoint import read_checkpoint
from kvant.capture.execute import Executor, Observe, in_memory_order, last_uses, run
from kvant.capture.passes import fold_batch_norm, prepare
from kvant.capture.products import product

__all__ = [
    "MASKED",
    "Executor",
    "Observe",
    "capture",
    "fold_batch_norm",
    "in_memory_order",
    "last_uses",
    "prepare",
    "product",
    "read_checkpoint",
    "run",
]
