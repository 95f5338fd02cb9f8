"""With scales that are powers of two, requantization is a shift: proven against exact integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kvant
from kvant.graph import ops
from kvant.runtime.arithmetic import Target
from kvant.runtime.reference.elementwise import requantize

WIDE = Target("int16", 0, -32768, 32767)


def shifted(value: int, places: int) -> int:
    """The shift of docs/numerics.md."""
    return (value + (1 << (places - 1)) - 1 + ((value >> places) & 1)) >> places if places else value


def shortened(value: int) -> int:
    """Rounded to 24 significant bits by a shift, which is what becoming a float32 does."""
    places = max(abs(value).bit_length() - 24, 0)
    return shifted(value, places) << places


@given(st.integers(-(2**40), 2**40), st.integers(0, 30))
def test_the_shift_rounds_half_to_even(value: int, places: int) -> None:
    assert shifted(value, places) == round(Fraction(value, 2**places))


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 40))
def test_requantization_is_shifts_only(value: int, places: int) -> None:
    wanted = min(max(shifted(shortened(value), places), WIDE.low), WIDE.high)
    assert int(requantize(np.array([value]), 2.0**-places, WIDE)[0]) == wanted
    if abs(value) < 2**24:
        assert wanted == min(max(shifted(value, places), WIDE.low), WIDE.high)


def test_every_sum_of_a_small_layer() -> None:
    sums = np.arange(-(2**17), 2**17)
    for places in range(12):
        wanted = [min(max(shifted(int(value), places), 0), 255) for value in sums]
        got = requantize(sums, 2.0**-places, Target("uint8", 0, 0, 255))
        assert got.tolist() == wanted


def test_a_network_has_multipliers_that_are_powers_of_two() -> None:
    """Also where activations are widened to 16 bits, weights get 14, and biases coarsen a scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)).eval()
    model[2].weight.data[3] *= 1e-12  # type: ignore[union-attr, operator]
    data = [torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    recipe = kvant.Recipe(
        kvant.WeightScheme(form="power_of_two"), kvant.ActivationScheme(form="power_of_two"), target_sqnr=60.0
    )
    graph = kvant.quantize(model, data[0], calibration=data, recipe=recipe).graph
    checked = 0
    for node in graph.nodes:
        if isinstance(node.op, ops.WEIGHTED):
            types = [graph.types[name].quantization for name in (*node.inputs[:2], node.output)]
            for entry in types:
                assert entry is not None
                assert all(np.frexp(scale)[0] == 0.5 for scale in entry.scale), node.describe()
            checked += 1
    assert checked == 3
