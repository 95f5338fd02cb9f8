"""What the user may choose about a quantization."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, get_args

from kvant.errors import RecipeError
from kvant.format import check_regular, write_atomically
from kvant.graph import Graph, Node, ops
from kvant.quantization.schemes import (
    INT8_WEIGHTS,
    UINT8_ACTIVATIONS,
    ActivationScheme,
    Arithmetic,
    WeightScheme,
    check_choices,
)
from kvant.quantization.toml import read_toml, write_toml

Observer = Literal["histogram", "minmax", "moving_average"]
Effort = Literal["fast", "default", "best"]

# Samples that are kept where the recipe does not say how many; biases are known well from as many.
FEW_SAMPLES = 16
# "best" keeps so many times as many samples.
_LEARNT = 8
# The others run on so many times as many samples as are kept, to see ranges.
_SEEN = {"fast": 2, "default": 4}


@dataclass(frozen=True)
class Rule:
    """Other schemes for some nodes.

    Attributes:
        pattern: of the tensor a node writes, or of its module path (``fnmatch``); a network's inputs have names too.
        kind: only operators of this kind, as the file spells it: "conv", "linear", "convtranspose", "binary"...
        weights: how the weights of these nodes are quantized; None leaves that to earlier rules and the recipe.
        activations: how what these nodes write is quantized; None likewise.
        arithmetic: how these weighted layers multiply; None likewise.

    Example:
        >>> Rule("head*", weights=WeightScheme(bits=8)).kind is None
        True
    """

    pattern: str = "*"
    kind: str | None = None
    weights: WeightScheme | None = None
    activations: ActivationScheme | None = None
    arithmetic: Arithmetic | None = None

    def __post_init__(self) -> None:
        wanted = {"pattern": str, "kind": str, "weights": WeightScheme, "activations": ActivationScheme}
        for name, type in wanted.items():
            value = getattr(self, name)
            if not isinstance(value, type) and (value is not None or name == "pattern"):
                raise RecipeError(f"Rule({name}={value!r}): expected a {type.__name__}")
        if self.arithmetic is not None and self.arithmetic not in get_args(Arithmetic):
            shown = ", ".join(map(repr, get_args(Arithmetic)))
            raise RecipeError(f"Rule(arithmetic={self.arithmetic!r}): expected one of {shown}")

    def applies(self, name: str, node: Node | None) -> bool:
        """Whether the rule is about a tensor: what ``node`` writes, or an input."""
        kind, module = ("input", "") if node is None else (node.op.kind, node.source.module)
        named = fnmatch(name, self.pattern) or (bool(module) and fnmatch(module, self.pattern))
        return named and self.kind in (None, kind)


@dataclass(frozen=True)
class Recipe:
    """How a network is quantized: static, uint8 activations, int8 weights, int32 biases, unless said otherwise.

    Attributes:
        weights: the scheme of all weights that no rule names.
        activations: the scheme of all activations that no rule names.
        rules: schemes by name and kind; where several fit, the last one decides.
        arithmetic: how weighted layers multiply. "integer" has scales for everything beforehand. "dynamic": linear
            layers take float32 and give each row (token) a scale when they run; convolutions stay "integer".
            "weight_only": weights are kept as integers and multiplied as float32. "float": nothing is quantized;
            "float16": weights are rounded to that and take half the room.
            What is around layers that take float32 has 16 bits; transposed convolutions stay "integer".
        skip: patterns of tensor names or module paths whose weighted layers are to be "float".
        wide: patterns (``fnmatch``) of tensor names or module paths whose output is to have 16 bits.
        target_sqnr: decibels of signal to quantization noise wanted at every output (for the mean of its channels, 2 dB
            less will do). 8-bit activations are widened to 16 bits, the most harmful ones first, until it is reached or
            until they are no longer what limits it; where more than half of the multiplications would read 16 bits
            then (a quarter at best effort), 4 dB less will do. None never widens.
        observer: what is remembered of activations: a histogram, the extremes, or a moving average of the extremes.
        equalize: move scale between layers where that changes nothing in real arithmetic (Nagel et al. 2019).
        center: with ``equalize``, also move offsets, so that all channels between two convolutions have one middle. It
            gives networks with all activations in 8 bits several dB, for four bytes of bias a channel.
        correct_bias: take the mean error that quantization causes out of the biases, layer by layer.
        compensate: where weights limit accuracy, round them so that the errors within a layer make up for each
            other on the kept samples (together with ``correct_bias``; weights that are rounded half to even only).
        fine_weights: where int8 weights limit accuracy, give 14 bits (kept as int16) to the weights of layers that
            cause most of it: within 1 % of all weights, and beyond that only where ``target_sqnr`` is missed otherwise.
            Weights of other schemes keep theirs.
        samples: how many calibration samples are kept for equalization, correction and measurement. None is 16, and 32
            for networks of less than 1e9 multiplications a sample, where that takes seconds ("default" only).
        effort: time for accuracy. "default" runs on no more samples than four times as many as are kept and then looks
            at the middles of large ones only. "fast" runs on twice as many and rounds weights to nearest.
            "best" runs on all, looks at twice as many, makes do with 3 dB less for more multiplications in 8 bits, and
            where far more is missing lets weights, biases and scales learn from the float network on eight times as
            many samples, without labels: minutes. With ``target_sqnr=None`` it may add two fifths of multiplications in
            8 bits where these leave less than 26 dB: copies of channels that are rounded at other places.

    Example:
        >>> recipe = Recipe(WeightScheme(bits=4), rules=(Rule("head*", weights=WeightScheme(bits=8)),))
        >>> Recipe.from_toml(recipe.to_toml()) == recipe
        True
    """

    weights: WeightScheme = INT8_WEIGHTS
    activations: ActivationScheme = UINT8_ACTIVATIONS
    rules: tuple[Rule, ...] = ()
    arithmetic: Arithmetic = "integer"
    skip: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    target_sqnr: float | None = 26.0
    observer: Observer = "histogram"
    equalize: bool = True
    center: bool = False
    correct_bias: bool = True
    compensate: bool = True
    fine_weights: bool = True
    samples: int | None = None
    effort: Effort = "default"

    def __post_init__(self) -> None:
        check_choices(self)
        for name, type in (("weights", WeightScheme), ("activations", ActivationScheme)):
            if not isinstance(getattr(self, name), type):
                raise RecipeError(f"Recipe({name}={getattr(self, name)!r}): expected a {type.__name__}")
        for name, of, what in (
            ("wide", str, "name patterns"),
            ("skip", str, "name patterns"),
            ("rules", Rule, "rules"),
        ):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(entry, of) for entry in value):
                raise RecipeError(f"Recipe({name}={value!r}): expected a tuple of {what}")
        if self.samples is not None and self.samples < 1:
            raise RecipeError(f"Recipe(samples={self.samples}): expected at least 1")
        for scheme in (self.activations, *(rule.activations for rule in self.rules)):
            if scheme is not None and self.observer != "histogram" and scheme.range not in ("mse", "minmax"):
                raise RecipeError(
                    f"Recipe(observer={self.observer!r}): ActivationScheme(range={scheme.range!r}) is found from "
                    "histograms, and this observer keeps extremes only; use observer='histogram', or range='minmax'"
                )

    @property
    def kept_samples(self) -> int:
        """How many samples are kept: those of ``measured_samples``, and with "best" more of them to learn from."""
        return _LEARNT * self._samples if self.effort == "best" else self.measured_samples

    @property
    def measured_samples(self) -> int:
        """How many samples equalization, correction and measurement look at, effort considered."""
        return 2 * self._samples if self.effort == "best" else self._samples

    @property
    def most_samples(self) -> int | None:
        """How many calibration samples the network runs on to see ranges; None is all.

        A moving average is of all, for it goes by their order.
        """
        if self.effort == "best" or self.observer == "moving_average":
            return None
        return _SEEN[self.effort] * self._samples

    @property
    def _samples(self) -> int:
        return FEW_SAMPLES if self.samples is None else self.samples

    @property
    def stays_in_8_bits(self) -> bool:
        """Whether best effort has to do without 16 bits."""
        return self.effort == "best" and self.target_sqnr is None

    @property
    def rounds_for_8_bits(self) -> bool:
        """Whether activations stay in 8 bits and weights are rounded again for what these leave."""
        return self.stays_in_8_bits and self.compensate and self.correct_bias

    def weight_scheme(self, node: Node) -> WeightScheme:
        """The scheme of a node's weights."""
        named = [rule.weights for rule in self.rules if rule.weights is not None and rule.applies(node.output, node)]
        return named[-1] if named else self.weights

    def layer_arithmetic(self, node: Node) -> Arithmetic:
        """How a weighted layer multiplies.

        Raises:
            RecipeError: a rule wants what there is no kernel for; the message names the nearest that there is.
        """
        named = [entry.arithmetic for entry in self.rules if entry.arithmetic and entry.applies(node.output, node)]
        if any(Rule(pattern).applies(node.output, node) for pattern in self.skip):
            named.append("float")
        wanted = named[-1] if named else self.arithmetic
        if wanted == "dynamic" and not isinstance(node.op, ops.Linear):
            if named:
                raise RecipeError(
                    f"{node.describe()}: scales at run time are for linear layers; use arithmetic='integer' with "
                    "activations=ActivationScheme(16), or 'weight_only'"
                )
            return "integer"
        if wanted != "integer" and isinstance(node.op, ops.ConvTranspose):
            if named:
                raise RecipeError(
                    f"{node.describe()}: transposed convolutions run on integers only; use arithmetic='integer' with "
                    "weights=WeightScheme(16) and activations=ActivationScheme(16)"
                )
            return "integer"
        return wanted

    def activation_rule(self, name: str, node: Node | None) -> ActivationScheme | None:
        """The scheme that rules give to a tensor, the output of ``node`` or an input; None where they give none."""
        named = [rule.activations for rule in self.rules if rule.activations is not None and rule.applies(name, node)]
        return named[-1] if named else None

    def is_wide(self, name: str, node: Node | None) -> bool:
        """Whether a tensor, the output of ``node`` or an input, is to have 16 bits."""
        return any(Rule(pattern).applies(name, node) for pattern in self.wide)

    def check_rules(self, graph: Graph) -> None:
        """Refuse rules that are about nothing in ``graph``.

        Raises:
            RecipeError: naming the rule.
        """
        tensors: list[tuple[str, Node | None]] = [(entry.name, None) for entry in graph.inputs]
        tensors += [(node.output, node) for node in graph.nodes]
        for rule in self.rules:
            _check_rule(rule, tensors)
        for pattern in self.skip:
            found = [node for name, node in tensors if Rule(pattern).applies(name, node)]
            if not found:
                raise about_nothing("Recipe(skip=...)", pattern, tensors)
            if not _any_weighted(found):
                raise RecipeError(
                    f"Recipe(skip=...): {pattern!r} names no convolution and no linear layer, and nothing else runs in "
                    "float32; use wide=..., which gives 16 bits"
                )

    def to_toml(self) -> str:
        """The recipe as TOML: what differs from the defaults."""
        return write_toml(self)

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """The recipe that a TOML text describes.

        Raises:
            RecipeError: the text is no TOML, or says something that no recipe knows.
        """
        return read_toml(text, cls, {"weights": WeightScheme, "activations": ActivationScheme, "rules": Rule})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe to a TOML file.

        Raises:
            SaveError: the file could not be written; one that was there before is unchanged.
        """
        write_atomically(path, [self.to_toml().encode()])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a TOML file.

        Raises:
            RecipeError: the file is no recipe.
            OSError: it does not exist or may not be read.
        """
        check_regular(path, RecipeError)
        try:
            return cls.from_toml(Path(path).read_text("utf-8-sig"))  # some editors begin files with a mark
        except UnicodeDecodeError as error:
            raise RecipeError(f"{os.fspath(path)!r} is no TOML file: {error}") from error
        except RecipeError as error:
            raise RecipeError(f"{os.fspath(path)!r}: {error}") from error


def _check_rule(rule: Rule, tensors: list[tuple[str, Node | None]]) -> None:
    """Refuse a rule that changes nothing of a graph with ``tensors`` and the nodes that write them."""
    if (rule.weights, rule.activations, rule.arithmetic) == (None, None, None):
        raise RecipeError(f"Rule({rule.pattern!r}) says nothing; use weights=, activations= or arithmetic= with it")
    found = [node for name, node in tensors if rule.applies(name, node)]
    if not found:
        raise about_nothing("Recipe(rules=...)", rule.pattern, tensors, rule.kind)
    if (rule.weights is not None or rule.arithmetic) and not _any_weighted(found):
        wish = f"arithmetic={rule.arithmetic!r}" if rule.arithmetic else f"weights of {rule.weights.bits} bits"  # type: ignore[union-attr]
        raise RecipeError(
            f"Recipe(rules=...): {rule.pattern!r} names no convolution and no linear layer, and nothing else has "
            f"{wish}; use activations=ActivationScheme(16)"
        )


def about_nothing(
    where: str, pattern: str, tensors: list[tuple[str, Node | None]], kind: str | None = None
) -> RecipeError:
    """The error of a pattern that nothing matches, with the nearest that something does."""
    kinds = sorted({"input" if node is None else node.op.kind for _, node in tensors})
    if kind is not None and kind not in kinds:
        return RecipeError(f"{where}: {pattern!r} matches no tensor and no module of kind {kind!r}; use one of {kinds}")
    names = [entry for name, node in tensors for entry in (node.source.module if node else "", name) if entry]
    return RecipeError(
        f"{where}: {pattern!r} matches no tensor and no module of this model; use one of {nearest(pattern, names)}"
    )


def nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """Three of ``names``: those that a pattern that matches none of them may have meant, or the first.

    >>> nearest("layers1*", ["stem", "layer1.conv", "layer2.conv", "head"])
    ['layer1.conv', 'layer2.conv']
    """
    some = list(dict.fromkeys(names))
    return get_close_matches(pattern.strip("*"), some, 3, 0.5) or some[:3]


def _any_weighted(nodes: list[Node | None]) -> bool:
    return any(node is not None and isinstance(node.op, ops.WEIGHTED) for node in nodes)
