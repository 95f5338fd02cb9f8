"""Running a quantized graph: plan it for the input's size, then run it on the native or the reference back end.

Nothing here imports torch.
"""

from __future__ import annotations

import os
from typing import Literal

from kvant.format import read_file
from kvant.runtime import native
from kvant.runtime.arithmetic import INT32_MAX, furthest
from kvant.runtime.decisions import DECISIONS, Decision, from_metadata, to_metadata
from kvant.runtime.guarded import Guarded
from kvant.runtime.inputs import by_name
from kvant.runtime.macs import Multiplications, count_macs
from kvant.runtime.model import QuantizedModel
from kvant.runtime.ordered import results_in_order
from kvant.runtime.plan import DEFAULT_MEMORY_LIMIT

__all__ = [
    "DECISIONS",
    "INT32_MAX",
    "Decision",
    "Guarded",
    "Multiplications",
    "QuantizedModel",
    "by_name",
    "count_macs",
    "from_metadata",
    "furthest",
    "load",
    "native",
    "results_in_order",
    "to_metadata",
]


def load(
    path: str | os.PathLike[str],
    backend: str | None = None,
    *,
    memory_budget: int | Literal["speed"] | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> QuantizedModel:
    """Read a .kvant file and make it ready to run. Nothing in the file is executed, and torch is not needed.

    Args:
        path: the file.
        backend: "native" or "reference"; by default the native one where it is built.
        memory_budget: bytes that weights may take when they are laid out for the processor, with the room to lay some
            out anew in each run; larger layouts can be faster. By default half more than they take in the file or 32 MB
            more, whichever is more, but at most 2.5 times as much; "speed" sets no bound. Results are the same bits.
        memory_limit: refuse inputs whose activations need more bytes than this.

    Raises:
        FormatError: the file is damaged, foreign, or too new.
        GraphError: the file holds a graph that is not quantized.
        BackendError: ``backend`` is unknown or not built.

    >>> model = kvant.load("pose.kvant")  # doctest: +SKIP
    >>> heat = model(image)  # doctest: +SKIP
    """
    contents = read_file(path)
    return QuantizedModel(
        contents.graph,
        backend=backend,
        metadata=contents.metadata,
        golden=contents.golden,
        memory_budget=memory_budget,
        memory_limit=memory_limit,
    )
