"""Activations that wait for their readers: the same bits as before, in fewer bytes."""

from __future__ import annotations

import pytest
import torch

from kvant.graph import Node, Quantization, TensorType, ops
from kvant.quantization.held import Held
from kvant.quantization.simulate import fake_quantize

VALUES = torch.linspace(-3.0, 5.0, 2 * 6 * 4 * 5).reshape(2, 6, 4, 5).contiguous(memory_format=torch.channels_last)


def type_of(dtype: str, zero: int, scale: float = 0.037, bits: int | None = None) -> TensorType:
    return TensorType(dtype, Quantization((scale,), zero, bits=bits))


def joined(*names: str, op: ops.AnyOp | None = None) -> Node:
    return Node(op or ops.Concat(axis=1), names, "joined")


@pytest.mark.parametrize(
    "type",
    [
        type_of("uint8", 0), type_of("uint8", 81), type_of("uint8", 255), type_of("uint8", 3, bits=4),
        type_of("int16", 0, 1e-4), type_of("int16", -32768, 1.3e-4), type_of("int16", 32767, 1.3e-4),
    ],
)  # fmt: skip
def test_integers_are_read_as_the_reals_that_they_stand_for(type):
    held = Held()
    held.hold("x", VALUES, type)
    assert torch.equal(held["x"], fake_quantize(VALUES, type))
    assert held["x"].stride() == VALUES.stride()  # channels lie side by side as before


def test_what_has_no_integers_is_kept_as_it_is():
    held = Held()
    held.hold("x", VALUES)
    held.hold("real", VALUES, TensorType("float32"))
    assert held["x"] is VALUES and held["real"] is VALUES
    assert list(held) == ["x", "real"] and len(held) == 2


def test_what_was_joined_stays_when_its_parts_are_dropped():
    held, type = Held(), type_of("uint8", 10)
    held.hold("a", VALUES, type)
    held.hold("b", VALUES * 0.5, type)
    assert held.join(joined("a", "b", "a"))
    held.drop(["a", "b", "unknown"])
    first, second = (fake_quantize(VALUES * factor, type) for factor in (1.0, 0.5))
    assert torch.equal(held["joined"], torch.cat([first, second, first], 1))
    assert held.join(Node(ops.Concat(axis=-1), ("joined", "joined"), "again"))
    assert torch.equal(held["again"], torch.cat([held["joined"]] * 2, -1))
    with pytest.raises(KeyError):
        held["a"]


def test_only_what_is_held_alike_is_joined():
    held = Held()
    held.hold("a", VALUES, type_of("uint8", 10))
    held.hold("b", VALUES, type_of("uint8", 11))
    held.hold("real", VALUES)
    for names in (("a", "b"), ("a", "real"), ("a", "constant")):
        assert not held.join(joined(*names)) and "joined" not in held
    assert not held.join(joined("a", op=ops.Softmax(axis=1)))


def test_what_need_not_be_small_is_rounded_and_kept():
    held, type = Held(small=False), type_of("uint8", 10)
    held.hold("a", VALUES, type)
    assert torch.equal(held["a"], fake_quantize(VALUES, type)) and held["a"] is held["a"]
    assert not held.join(joined("a", "a"))


def test_what_is_taken_is_held_no_more():
    held = Held(small=False)
    held.hold("a", VALUES)
    assert held.take("a") is VALUES and "a" not in held
