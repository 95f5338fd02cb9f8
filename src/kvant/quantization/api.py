"""``kvant.quantize``: a float32 PyTorch model in, a quantized model that runs without PyTorch out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from kvant.capture import capture, prepare
from kvant.errors import FormatError, QuantizationError, RecipeError
from kvant.format import check_metadata
from kvant.graph import Graph, example_shapes, validate
from kvant.quantization.batches import batches, flatten
from kvant.quantization.convert import convert
from kvant.quantization.datafree import MOST_SAMPLES, unclipped, without_data
from kvant.quantization.decide import make_plan
from kvant.quantization.embeddings import split_tables
from kvant.quantization.generate import generate
from kvant.quantization.leaving import join, reaches, without_joins
from kvant.quantization.progress import Progress
from kvant.quantization.recipe import FEW_SAMPLES, Recipe
from kvant.quantization.statistics import Sample, Statistics, collect, is_made_of_samples
from kvant.quantization.turns import in_turn
from kvant.quantization.types import check_reach
from kvant.quantization.workers import one_thread_each
from kvant.runtime import DECISIONS, QuantizedModel, count_macs, to_metadata

# Keys of the metadata that say how a file was made.
OURS = {"calibration", DECISIONS}
# Noise with seven tenths of the signal's amplitude: whoever quantizes must hear of it.
LOUD_DB = 3.0
# Multiplications a sample, below which a network runs so quickly that more samples are kept.
QUICK_MACS = 1e9


@in_turn
def quantize(
    model: torch.nn.Module,
    example_inputs: Any,
    *,
    calibration: Iterable[Any] | None,
    recipe: Recipe | None = None,
    progress: bool | None = None,
    metadata: Mapping[str, str] | None = None,
) -> QuantizedModel:
    """Quantize a trained float32 model to integers. Threads that call this at once take turns.

    Args:
        model: a module in evaluation mode, on the CPU. It is not changed.
        example_inputs: one input as the model takes it: a tensor, a tuple of positional or a dict of keyword inputs.
            Sizes of batch, height, width and sequence stay free where the model allows it.
        calibration: any iterable of inputs of that kind, with a batch axis; read once, in constant memory. Some tens
            to a hundred typical inputs are enough. None is level 1 (Nagel et al. 2019): inputs are generated from what
            batch norms remember, and ``metadata["calibration"]`` of the result says which; 16 bits are kept where
            nothing is known. Give data if there is any.
        recipe: what to choose and how; the defaults are meant to hold accuracy.
        progress: show progress bars; None shows them on a terminal.
        metadata: strings to keep in the file, such as how to prepare pictures.

    Returns:
        A model that is called with NumPy arrays or tensors, and saved by ``save(path)``. Its ``decisions``, which
        travel in the file, say what was tried, measured and taken.

    Raises:
        CaptureError: the model cannot be captured (UnsupportedOperatorError lists every operator at fault).
        CalibrationError: the data is empty, not finite, does not fit, or reaches what no scale can stand for.
        RecipeError: the recipe is none, or names tensors that do not exist.
        QuantizationError: a node has no integer form, or ``metadata`` are no strings or have a name that is taken.

    Warns:
        UserWarning: the outputs are mostly noise, measured on calibration data that was held out.

    Example:
        >>> import torch, kvant
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
        >>> images = [torch.rand(1, 3, 16, 16) for _ in range(4)]
        >>> kvant.quantize(net, images[0], calibration=images)(images[0]).shape
        torch.Size([1, 8, 14, 14])
    """
    show = Progress(progress)
    kept = _checked(metadata, recipe)
    args, kwargs = _call(example_inputs)
    captured = capture(model, args, kwargs)
    whole = split_tables(prepare(captured))
    recipe = _settled(recipe or Recipe(), whole)
    given = None if calibration is None else batches(whole, calibration)
    first, given = (flatten(whole, _tensors(example_inputs)), None) if given is None else _peeked(given)
    graph, leaving = without_joins(whole, lambda names: reaches(whole, first, names))
    with one_thread_each():
        if given is None:
            seen, recipe, kept["calibration"] = _level_1(captured, graph, example_inputs, recipe, show)
        else:
            seen = collect(graph, given, recipe.observer, recipe.kept_samples, show, recipe.most_samples)
        check_reach(graph, seen.observers)
        plan = make_plan(graph, seen, recipe, show)
    _warn(plan.decisions[-1].after)
    quantized = join(convert(plan), graph, whole, leaving)
    validate(quantized)
    return QuantizedModel(quantized, metadata=kept | to_metadata(plan.decisions))


def _checked(metadata: object, recipe: object) -> dict[str, str]:
    """A copy of the metadata; what could not be used or stored in the end is refused before the long work."""
    if not isinstance(recipe, Recipe | None):
        raise RecipeError(f"recipe is a {type(recipe).__name__}, expected a kvant.Recipe")
    if not isinstance(metadata, Mapping | None):
        raise QuantizationError(f"metadata is a {type(metadata).__name__}, expected a dict of strings")
    kept = dict(metadata or {})
    try:
        check_metadata(kept)
    except FormatError as error:
        raise QuantizationError(f"metadata cannot be stored: {error}") from error
    for key in OURS & set(kept):
        raise QuantizationError(f"metadata={{{key!r}: ...}}: quantize writes that itself; choose another name")
    return kept


def _settled(recipe: Recipe, graph: Graph) -> Recipe:
    """``recipe`` with a number of samples: more of a network that runs quickly, for what is held out of few samples
    tells little of others."""
    if recipe.samples is not None:
        return recipe
    first = [shape[0] for shape in example_shapes(graph).values() if shape]
    batch = min(first, default=1) if is_made_of_samples(graph) else 1
    quick = sum(each.count for each in count_macs(graph)) < QUICK_MACS * batch
    return replace(recipe, samples=(2 if quick and recipe.effort == "default" else 1) * FEW_SAMPLES)


def _warn(measured: float | None) -> None:
    """Say it where the outputs are mostly noise."""
    if measured is not None and measured < LOUD_DB:
        warnings.warn(
            f"the outputs of the quantized model have {measured:.1f} dB of signal to noise: they are mostly noise. Its "
            "decisions say which step lost what; more bits, effort='best' or more calibration data may help",
            stacklevel=4,  # past `in_turn`, to who called `quantize`
        )


def _level_1(
    captured: Graph, graph: Graph, example: Any, recipe: Recipe, show: Progress
) -> tuple[Statistics, Recipe, str]:
    """Statistics on inputs that are generated, the recipe adapted to how little they tell, and what was done."""
    recipe = unclipped(recipe)
    samples, what = generate(captured, flatten(graph, _tensors(example)), min(recipe.kept_samples, MOST_SAMPLES), show)
    seen = collect(graph, samples, recipe.observer, len(samples), show)
    return seen, without_data(captured, graph, seen, recipe), f"no data; {what}"


def _peeked(given: Iterator[Sample]) -> tuple[Sample | None, Iterator[Sample]]:
    """The first sample, if there is one, and all of them."""
    first = next(given, None)
    return first, given if first is None else chain([first], given)


def _tensors(example: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]


def _call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}
