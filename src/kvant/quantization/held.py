"""Activations of one sample that wait for the nodes that read them, in as few bytes as they need.

Where a network runs node by node on many samples at once, these are what takes memory. What was rounded to integers is
kept as such, and what is joined from others as these; both are made anew, to the same bits, when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from kvant.graph import Node, TensorType, ops
from kvant.quantization.simulate import fake_quantize, from_zero


class Held(Mapping[str, torch.Tensor]):
    """The activations by name; each read gives a float32 tensor, which is not to be changed.

    Args:
        small: keep integers and parts; else what is read takes no time to make.
    """

    def __init__(self, *, small: bool = True) -> None:
        self._small = small
        self._entries: dict[str, _Plain | _Integers | _Joined] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def hold(self, name: str, values: torch.Tensor, type: TensorType | None = None) -> None:
        """Keep ``values``, rounded to what the integers of ``type`` can stand for, if it is given."""
        if type is None or type.quantization is None or not self._small:
            self._entries[name] = _Plain(values if type is None else fake_quantize(values, type))
            return
        quantization = type.quantization
        integers = from_zero(values, quantization, *type.integer_range()).add_(quantization.zero_point)
        small = integers.to(getattr(torch, type.dtype))
        self._entries[name] = _Integers(small, quantization.zero_point, quantization.scale[0])

    def take(self, name: str) -> torch.Tensor:
        """What was held, to be changed by whoever takes it; it is held no more."""
        return self._entries.pop(name).read()

    def join(self, node: Node) -> bool:
        """Keep what ``node`` joins of activations that are held alike; False if it does something else."""
        known = all(name in self._entries for name in node.inputs)
        if not self._small or not isinstance(node.op, ops.Concat) or not known:
            return False
        parts = [self._entries[name] for name in node.inputs]
        if len({part.kind for part in parts}) > 1:
            return False
        self._entries[node.output] = _Joined(parts, node.op.axis)
        return True

    def drop(self, names: Iterable[str]) -> None:
        """Forget activations that nothing reads any more; what was joined from them stays."""
        for name in names:
            self._entries.pop(name, None)


@dataclass(frozen=True)
class _Plain:
    values: torch.Tensor
    kind: None = None

    def read(self) -> torch.Tensor:
        return self.values


@dataclass(frozen=True)
class _Integers:
    values: torch.Tensor
    zero: int
    scale: float

    @property
    def kind(self) -> tuple[int, float]:
        return self.zero, self.scale

    def read(self) -> torch.Tensor:
        return self.values.float().sub_(self.zero).mul_(self.scale)


@dataclass(frozen=True)
class _Joined:
    parts: Sequence[_Plain | _Integers | _Joined]
    axis: int

    @property
    def kind(self) -> tuple[int, float] | None:
        return self.parts[0].kind

    def read(self) -> torch.Tensor:
        return torch.cat([part.read() for part in self.parts], self.axis)
