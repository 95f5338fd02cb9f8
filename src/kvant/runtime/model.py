"""The model that a user calls: a quantized graph, run by a back end."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvant.errors import BackendError, InputError, VerificationError
from kvant.format import Golden, from_bytes, to_bytes, write_file
from kvant.graph import Graph, example_shapes
from kvant.runtime.decisions import Decision, from_metadata
from kvant.runtime.execute import Backend, FramePool
from kvant.runtime.inputs import any_torch, check_finite, collect, nest, not_quantized, takes_pixels, to_torch
from kvant.runtime.macs import Multiplications, count_macs
from kvant.runtime.native import Choice, NativeBackend
from kvant.runtime.plan import DEFAULT_MEMORY_LIMIT, Planner
from kvant.runtime.reference import ReferenceBackend
from kvant.runtime.steps import Step

Array = npt.NDArray[Any]
# What laid out weights may take by default: so many times their bytes in the file, or so many bytes more, within the
# largest multiple. More pays little: late weights need only room.
_DEFAULT_BUDGET, _LARGEST_DEFAULT_BUDGET = 1.5, 2.5
_ROOM = 32 << 20


class QuantizedModel:
    """A quantized graph that can be called, saved, and verified.

    It may be called from several threads at once, and in forked processes. Copied and pickled, for other processes, it
    travels as the bytes of its file, and is prepared anew. Any input size that the graph allows runs; the work of
    planning a size is done on its first use.

    Args:
        graph: validated, with integer activations.
        backend: "native" or "reference"; by default the native one where it is built.
        metadata: strings that travel in the file.
        golden: inputs and outputs that ``verify`` replays.
        memory_budget: see ``kvant.load``.
        memory_limit: refuse inputs whose activations need more bytes than this. Where it refuses the example's size,
            all layers are computed directly.

    Raises:
        GraphError: a node has no integer arithmetic (AccumulatorOverflowError: its sums could overflow).
        BackendError: ``backend`` is unknown or not built, or a budget or limit is none.

    >>> model = kvant.load("pose.kvant")  # doctest: +SKIP
    >>> paf, heat = model(image)  # doctest: +SKIP
    """

    def __init__(
        self,
        graph: Graph,
        *,
        backend: str | None = None,
        metadata: Mapping[str, str] | None = None,
        golden: Iterable[Golden] = (),
        memory_budget: int | Literal["speed"] | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
    ) -> None:
        self.graph = graph
        self.metadata = dict(metadata or {})
        self.golden = list(golden)
        self._to_check = not_quantized(graph)
        self._limits = memory_budget, _checked(memory_limit)
        self._planner = Planner(graph, memory_limit)
        self._backend = _make_backend(backend)
        self._backend.prepare(self._example_steps(), _bytes(graph, memory_budget))
        self._frames = FramePool(graph, self._backend)

    def _example_steps(self) -> Sequence[Step]:
        """What runs at the example size; nothing if the memory limit refuses that size, though others may be run."""
        shapes = example_shapes(self.graph)
        try:
            return self._planner.plan(shapes).steps
        except InputError:
            return ()

    @property
    def backend(self) -> str:
        """The back end in use: "native" or "reference"."""
        return self._backend.name

    @property
    def decisions(self) -> list[Decision]:
        """What quantization tried, what each step changed on samples held out, and whether it was taken.

        Raises:
            FormatError: the file's metadata hold something else under this name.
        """
        return from_metadata(self.metadata)

    @property
    def takes_pixels(self) -> bool:
        """Whether all inputs are pictures that may be given as uint8, too: what they are rounded to is 0 to 255.

        Channels last in memory (N x H x W x C, transposed), such pictures are read where they are.
        """
        return all(takes_pixels(self.graph, entry.name) for entry in self.graph.inputs)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Run the model.

        Args:
            args, kwargs: the inputs, by position or by name, as the original model takes them: NumPy arrays or torch
                tensors of the graph's dtypes, or tuples, lists and dicts of them; see ``takes_pixels``, too.

        Returns:
            The outputs, nested as the original model nests them; torch tensors if any input is one, else arrays.

        Raises:
            InputError: an input is missing, or has the wrong rank, shape, dtype or value.
        """
        again = None if kwargs else self._frames.again(args)
        if again is not None:
            return nest(self.graph.structure, again)
        outputs: list[Any] = self._run(collect(self.graph, args, kwargs))
        if any_torch((*args, *kwargs.values())):
            outputs = to_torch(outputs)
        return nest(self.graph.structure, outputs)

    def _run(self, inputs: Mapping[str, Array]) -> list[Array]:
        return self._computed(inputs, self.graph.outputs)

    def _computed(self, inputs: Mapping[str, Array], names: Iterable[str], *, keep_all: bool = False) -> list[Array]:
        """Copies of these tensors; activations that are no outputs are there with ``keep_all`` only."""
        for name in self._to_check:
            check_finite(name, inputs[name])
        plan = self._planner.plan({name: value.shape for name, value in inputs.items()}, keep_all)
        frame = self._frames.take(plan)
        frame.run(inputs)
        found = [frame.views[name].copy() for name in names]
        self._frames.give_back(frame)
        return found

    def run_all(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """Every activation, inputs included, by tensor name: for diagnosis; it needs memory for all at once.

        Args:
            inputs: an array for every graph input, by name.

        Raises:
            InputError: an input is missing, or has the wrong rank, shape, dtype or value.
        """
        if not isinstance(inputs, Mapping):
            raise InputError(f"run_all takes a dict of inputs by name, got a {type(inputs).__name__}")
        names = list(self.graph.activations())
        found = self._computed(collect(self.graph, (), inputs), names, keep_all=True)
        return dict(zip(names, found, strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its metadata and its golden vectors to one file.

        Raises:
            SaveError: the file could not be written; one that was there before is unchanged.
        """
        write_file(path, self.graph, golden=self.golden, metadata=self.metadata)

    def add_golden(self, *inputs: object) -> None:
        """Run these inputs and keep them with their outputs, so that ``verify`` can replay them anywhere."""
        arrays = {name: value.copy() for name, value in collect(self.graph, inputs, {}).items()}
        self.golden.append(Golden(arrays, self._run(arrays)))

    def verify(self) -> int:
        """Replay the golden vectors on this back end and return how many there are.

        Raises:
            VerificationError: an output has other bits; the message names it and counts the elements that differ.
        """
        for index, entry in enumerate(self.golden):
            try:
                outputs = self._run(collect(self.graph, (), entry.inputs))
            except InputError as error:
                raise VerificationError(f"golden vector {index} does not fit the model: {error}") from error
            for name, expected, found in zip(self.graph.outputs, entry.outputs, outputs, strict=True):
                _check_same(f"golden vector {index}: output {name!r}", self.backend, expected, found)
        return len(self.golden)

    def algorithms(self) -> list[Choice]:
        """How the native back end computes each convolution and linear layer; empty for the reference back end."""
        return list(self._backend.choices)

    def macs(self) -> list[Multiplications]:
        """Multiply-accumulates of every node that has them, at the size that the model was captured with."""
        return count_macs(self.graph)

    def __reduce__(self) -> tuple[Any, ...]:
        content = to_bytes(self.graph, golden=self.golden, metadata=self.metadata)
        return _restored, (content, self.backend, *self._limits)

    def __repr__(self) -> str:
        inputs = ", ".join(entry.name for entry in self.graph.inputs)
        return f"QuantizedModel(inputs={inputs}, nodes={len(self.graph.nodes)}, backend={self.backend!r})"


def _bytes(graph: Graph, budget: int | Literal["speed"] | None) -> float:
    """A memory budget in bytes."""
    if budget is None:
        size = sum(value.nbytes for value in graph.constants.values())
        return min(max(_DEFAULT_BUDGET * size, size + _ROOM), _LARGEST_DEFAULT_BUDGET * size)
    if budget == "speed":
        return math.inf
    if not _is_size(budget):
        raise BackendError(f'memory_budget={budget!r}: expected a number of bytes, "speed" or None')
    return budget


def _is_size(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0


def _checked(limit: int) -> int:
    if not _is_size(limit):
        raise BackendError(f"memory_limit={limit!r}: expected a number of bytes")
    return limit


def _restored(
    content: bytes, backend: str, memory_budget: int | Literal["speed"] | None, memory_limit: int
) -> QuantizedModel:
    """A model as it was pickled; the native back end is taken where it is built."""
    found = from_bytes(content)
    return QuantizedModel(
        found.graph,
        backend=None if backend == NativeBackend.name else backend,
        metadata=found.metadata,
        golden=found.golden,
        memory_budget=memory_budget,
        memory_limit=memory_limit,
    )


def _check_same(label: str, backend: str, expected: Array, found: Array) -> None:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise VerificationError(
            f"{label} is {found.dtype} of shape {found.shape}, expected {expected.dtype} of shape {expected.shape}"
        )
    differing = int(np.count_nonzero(_bits(expected) != _bits(found)))
    if differing:
        raise VerificationError(f"{label} differs in {differing} of {found.size} elements on the {backend} back end")


def _bits(array: Array) -> Array:
    """The array's bytes, one row for each element, so that even zeros of different sign are told apart."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.dtype(f"u{flat.dtype.itemsize}"))


def _make_backend(name: str | None) -> Backend:
    if name == "reference":
        return ReferenceBackend()
    if name == "native":
        return NativeBackend()
    if name is not None:
        raise BackendError(f"unknown back end {name!r}; there are 'native' and 'reference'")
    try:
        return NativeBackend()
    except BackendError as error:
        warnings.warn(f"{error} The reference back end is used; it is slow.", RuntimeWarning, stacklevel=3)
        return ReferenceBackend()
