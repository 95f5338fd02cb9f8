"""Steps that become one, so that what lies between them is never written: a convolution and what is added to its
results; a depthwise convolution and the 1 x 1 convolution that reads it. The bits are those of the separate steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from kvant.runtime.lower import Context
from kvant.runtime.steps import Addend, Binary, Conv, ConvPair, Step

# Smaller results of a depthwise convolution stay in the second-level cache anyway, and whole ones are easier to share
# among threads than rows of both layers.
_LEAST_BYTES = 2**18


def fuse(context: Context) -> list[Step]:
    """The steps of ``context``, fused where a tensor between two of them has no other reader."""
    private = _read_once(context)
    return _fuse_pairs(context, _fuse_additions(context, context.steps, private), private)


def _read_once(context: Context) -> set[str]:
    """Tensors that one step reads, once, and nobody else sees."""
    counts = Counter(name for step in context.steps for name in step.inputs)
    seen = {*context.aliases, *context.aliases.values(), *context.graph.outputs}
    return {name for name, count in counts.items() if count == 1 and name not in seen}


def _fuse_additions(context: Context, steps: Sequence[Step], private: set[str]) -> list[Step]:
    """The latest convolution that a sum reads takes the sum's place."""
    made: dict[str, tuple[int, Step]] = {}
    kept: list[Step | None] = []
    for step in steps:
        found = [made[name] for name in step.inputs if name in made and _is_sum(context, step, made[name][1])]
        if found:
            index, conv = max(found, key=lambda entry: entry[0])
            kept[index] = None
            step = _with_addend(step, conv)
        elif isinstance(step.work, Conv) and step.output in private:
            made[step.output] = (len(kept), step)
        kept.append(step)
    return [step for step in kept if step is not None]


def _is_sum(context: Context, step: Step, conv: Step) -> bool:
    """Whether ``step`` adds the results of ``conv`` and a tensor of their type that lies like them."""
    work = step.work
    if not isinstance(work, Binary) or work.fn != "add" or len(set(step.inputs)) != 2:
        return False
    dense = work.strides_a == work.strides_b == (1,)
    return dense and {context.type(name).dtype for name in step.inputs} == {work.target.dtype}


def _with_addend(step: Step, conv: Step) -> Step:
    work = step.work
    if not isinstance(work, Binary) or not isinstance(conv.work, Conv):
        raise TypeError(f"{work} does not add to {conv.work}")
    sides = [(work.zero_a, work.multiplier_a), (work.zero_b, work.multiplier_b)]
    own = step.inputs.index(conv.output)
    (_, multiplier), (zero_point, added_multiplier) = sides[own], sides[1 - own]
    addend = Addend(zero_point, multiplier, added_multiplier, work.target)
    inputs = (conv.inputs[0], step.inputs[1 - own])
    return Step(replace(conv.work, added=addend), inputs, step.output, conv.node)


def _fuse_pairs(context: Context, steps: Sequence[Step], private: set[str]) -> list[Step]:
    made: dict[str, int] = {}
    kept: list[Step | None] = []
    for step in steps:
        index = made.get(step.inputs[0]) if isinstance(step.work, Conv) and _is_pointwise(step.work) else None
        first = None if index is None else kept[index]
        if index is not None and first is not None:
            kept[index] = None
            step = _joined(first, step)
        elif step.output in private and _is_worth_it(context, step):
            made[step.output] = len(kept)
        kept.append(step)
    return [step for step in kept if step is not None]


def _is_pointwise(work: Conv) -> bool:
    if work.transposed or work.weights.signs:  # those have an algorithm of their own
        return False
    alone = (work.kernel, work.strides, work.pads, work.weights.groups) == ((1, 1), (1, 1), (0, 0), 1)
    return alone and work.size == work.output_size


def _is_worth_it(context: Context, step: Step) -> bool:
    """Whether it is a depthwise convolution whose results leave the cache."""
    work = step.work
    if not isinstance(work, Conv) or work.transposed or work.added or work.weights.signs:
        return False
    depthwise = work.weights.groups == work.channels == work.output_channels
    return (
        depthwise and math.prod(context.shapes[step.output]) * context.type(step.output).numpy.itemsize >= _LEAST_BYTES
    )


def _joined(first: Step, second: Step) -> Step:
    if not isinstance(first.work, Conv) or not isinstance(second.work, Conv):
        raise TypeError(f"{first.work} and {second.work} are no convolutions")
    work = ConvPair(first.work, second.work, first.node)
    return Step(work, (*first.inputs, *second.inputs[1:]), second.output, second.node)
