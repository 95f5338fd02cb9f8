"""Embedding tables whose rows differ in size: each row gets a range of its own.

Integers that a gather moves have one scale, so a table has one, and a few large entries (some rare word's) take the
bits of all others. A row divided by its largest magnitude fills the range of all rows; the magnitude is gathered beside
it, from a table of one column, and multiplied in again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvant.graph import Graph, Node, ops

# Rows get ranges of their own where that divides the squared error of 8 bits by at least this much: 6 dB.
_GAIN = 4.0
# Shorter rows are not worth a number more.
_SHORTEST = 8


def split_tables(graph: Graph) -> Graph:
    """``graph`` with rows of embedding tables divided by their sizes, times these: the same in real arithmetic."""
    graph, nodes = graph.copy(), []
    for node in graph.nodes:
        table = _table(graph, node)
        if table is None:
            nodes.append(node)
            continue
        sizes = np.abs(table).max(1, keepdims=True)
        sizes[sizes == 0] = 1.0
        parts = []
        for part, values in (("rows", table / sizes), ("sizes", sizes)):
            constant = graph.add_constant(f"{node.inputs[0]}.{part}", values.astype(np.float32))
            name = graph.fresh(f"{node.output}.{part}")
            graph.types[name] = graph.types[node.output]
            nodes.append(replace(node, inputs=(constant, node.inputs[1]), output=name))
            parts.append(name)
        nodes.append(Node(ops.Binary("mul"), tuple(parts), node.output, node.source))
    graph.replace_nodes(nodes)
    return graph


def _table(graph: Graph, node: Node) -> np.ndarray | None:
    """The table of which ``node`` looks up rows while it runs, if they are worth a range each."""
    if node.op != ops.Gather(0) or node.inputs[1] in graph.constants:
        return None
    table = graph.constants.get(node.inputs[0])
    if table is None or table.dtype != np.float32 or table.ndim != 2 or not len(table) or table.shape[1] < _SHORTEST:
        return None
    together = max(float(table.max()), 0.0) - min(float(table.min()), 0.0)
    apart = 2 * np.abs(table).max(1).astype(np.float64)
    return table if together**2 >= _GAIN * float(np.mean(apart**2)) else None
