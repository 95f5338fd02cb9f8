"""Under which names the tensors of a file are listed: computed from the header, never read from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_RESERVED = "__metadata__"


@dataclass
class Names:
    """Names in the file of the constants, their scales and their packing's tables, and of golden vectors' arrays."""

    constants: dict[str, str] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    golden: list[tuple[dict[str, str], list[str]]] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        yield from self.constants.values()
        yield from self.scales.values()
        yield from self.tables.values()
        for inputs, outputs in self.golden:
            yield from inputs.values()
            yield from outputs


def storage_names(
    constants: Sequence[str],
    scaled: Sequence[str],
    packed: Sequence[str],
    inputs: Sequence[str],
    outputs: int,
    golden: int,
) -> Names:
    """Names for all tensors of a file, each used once.

    Args:
        constants: names of the constants.
        scaled: those of them that have one scale per index of an axis.
        packed: those of them that are packed, by a table.
        inputs: names of the graph's inputs.
        outputs: how many outputs the graph has.
        golden: how many golden vectors the file has.

    >>> list(storage_names(["w", "w.scale"], ["w"], ["w"], ["x"], 1, 1))
    ['w', 'w.scale', 'w.scale_1', 'w.packing', 'golden.0.input.x', 'golden.0.output.0']
    """
    taken = {_RESERVED}
    names = Names()
    for name in constants:
        names.constants[name] = _claim(name, taken)
    for name in scaled:
        names.scales[name] = _claim(f"{name}.scale", taken)
    for name in packed:
        names.tables[name] = _claim(f"{name}.packing", taken)
    for index in range(golden):
        given = {name: _claim(f"golden.{index}.input.{name}", taken) for name in inputs}
        wanted = [_claim(f"golden.{index}.output.{number}", taken) for number in range(outputs)]
        names.golden.append((given, wanted))
    return names


def _claim(name: str, taken: set[str]) -> str:
    chosen, count = name, 0
    while chosen in taken:
        count += 1
        chosen = f"{name}_{count}"
    taken.add(chosen)
    return chosen
