"""``kvant info``, ``kvant run`` and ``kvant verify``: what one does with a .kvant file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy.typing as npt
import typer

import kvant
from kvant.cli import options, output
from kvant.cli.arrays import read_inputs, write_arrays
from kvant.cli.describe import Description, describe
from kvant.format import read_file
from kvant.graph import Structure

Array = npt.NDArray[Any]


def info(
    file: options.File,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON, all tensors included.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with its type and scale.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="How this machine would compute each convolution and linear layer.")
    ] = False,
    memory_budget: options.MemoryBudget = None,
) -> None:
    """Show what a file holds: operators, bits, sizes, scales, and in which integers it multiplies."""
    description = describe(read_file(file))
    if as_json:
        print(json.dumps(description.to_dict(), indent=2))
        return
    _print_summary(file, description)
    operators = sorted(description.operators.items(), key=lambda entry: (-entry[1], entry[0]))
    output.print_table("Operators", ["operator", "count"], operators)
    output.print_table(
        "Multiplications at the example size",
        ["operands", "count", "share"],
        [(kind, count, f"{share:.1%}") for kind, count, share in description.shares()],
    )
    if description.decisions:
        columns = ["tried", "taken", "without", "with", ""]
        title = "Steps, by signal to noise on held-out samples"
        output.print_table(title, columns, [entry.row() for entry in description.decisions])
    if tensors:
        columns = ["tensor", "kind", "type", "shape", "scale", "zero point"]
        output.print_table("Tensors", columns, [entry.row() for entry in description.tensors])
    if plan:
        _print_plan(file, memory_budget)


def _print_plan(file: Path, memory_budget: str | None) -> None:
    model = kvant.load(file, memory_budget=options.to_budget(memory_budget))
    choices = model.algorithms()
    rows = [(entry.node, entry.algorithm, output.megabytes(entry.bytes), f"{entry.macs:,}") for entry in choices]
    title = f"Plan of the {model.backend} back end, weights {output.megabytes(sum(entry.bytes for entry in choices))}"
    output.print_table(title, ["layer", "algorithm", "weights", "multiplications"], rows)


def _print_summary(file: Path, description: Description) -> None:
    facts = description.facts
    lines = {
        "file": file,
        "size": f"{output.megabytes(facts['file_bytes'])}, "
        f"{facts['file_bytes'] / (facts['float_bytes'] or 1):.1%} of its {facts['weights']:,} weights in float32",
        "written by": f"{facts['producer']}, format {facts['format']}",
        "sha256": facts["sha256"],
        "inputs": ", ".join(f"{entry['name']} {entry['dtype']} {entry['shape']}" for entry in facts["inputs"]),
        "outputs": ", ".join(f"{entry['name']} {entry['dtype']} {entry['shape']}" for entry in facts["outputs"]),
        "activations": ", ".join(f"{count} {dtype}" for dtype, count in facts["activations"].items()),
        "constants": ", ".join(f"{count:,} {dtype}" for dtype, count in facts["constants"].items()),
        "golden vectors": facts["golden"],
        **{f"metadata {key}": value for key, value in facts["metadata"].items()},
    }
    width = max(map(len, lines))
    for label, value in lines.items():
        print(f"{output.clean(label):{width}}  {output.clean(value)}")


def run(
    file: options.File,
    inputs: Annotated[
        Path, typer.Argument(metavar="INPUT.npz", help="The inputs, by name or in order.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.npz", help="Where the outputs go.", show_default=False)
    ],
    backend: options.BackendOption = None,
    memory_budget: options.MemoryBudget = None,
) -> None:
    """Run a file on arrays. Several outputs are named as the model names them, or output_0, output_1..."""
    options.check_writable(out, file, inputs)
    model = kvant.load(file, backend=backend, memory_budget=options.to_budget(memory_budget))
    arrays = read_inputs(inputs, [entry.name for entry in model.graph.inputs])
    outputs = name_outputs(model.graph.structure, model(*arrays))
    write_arrays(out, outputs)
    for name, value in outputs.items():
        output.say(f"{name}: {value.dtype} {' x '.join(map(str, value.shape))}")


def name_outputs(structure: Structure, outputs: Any, path: str = "output") -> dict[str, Array]:
    """The outputs of a model by name, flattened: keys of dicts, numbers within tuples.

    >>> name_outputs({"heat": 0, "rest": [1, 2]}, {"heat": "a", "rest": ("b", "c")})
    {'heat': 'a', 'rest_0': 'b', 'rest_1': 'c'}

    Where that gives two the same name, the later one has a line more.

    >>> name_outputs({"rest": [0], "rest_0": 1}, {"rest": ("a",), "rest_0": "b"})
    {'rest_0': 'a', 'rest_0_': 'b'}
    """
    named: dict[str, Array] = {}
    for name, value in _named(structure, outputs, path):
        while name in named:
            name += "_"
        named[name] = value
    return named


def _named(structure: Structure, outputs: Any, path: str) -> Iterator[tuple[str, Array]]:
    if isinstance(structure, int):
        yield path, outputs
    elif isinstance(structure, dict):
        for key, child in structure.items():
            yield from _named(child, outputs[key], key if path == "output" else f"{path}_{key}")
    else:
        for index, child in enumerate(structure):
            yield from _named(child, outputs[index], f"{path}_{index}")


def verify(file: options.File, backend: options.BackendOption = None) -> None:
    """Check a file: its checksum and structure, and that its golden vectors give the same bits on this machine."""
    model = kvant.load(file, backend=backend)
    count = model.verify()
    print(f"{output.clean(file)}: checksum and structure are sound")
    if count:
        print(f"{output.counted(count, 'golden vector')} gave the same bits on the {model.backend} back end")
    else:
        print("the file holds no golden vectors, so no outputs were compared (kvant quantize --golden N adds some)")
