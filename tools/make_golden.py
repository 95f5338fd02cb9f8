"""Write the golden file of a release: a small network of every operator that a file can hold, with its outputs.

    python tools/make_golden.py operators tests/golden/v0.1/operators.kvant
    python tools/make_golden.py schemes tests/golden/v0.1/schemes.kvant
    python tools/make_golden.py places tests/golden/v0.1/places.kvant

Run once for a release, on the reference back end. Files of earlier releases are never written again: that they stay
readable and give the same bits is what they are for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant import QuantizedModel
from kvant.graph import FLOAT32, Graph, Quantization, Source, TensorType, ops
from kvant.graph.ops import AnyOp

INT64 = TensorType("int64")


def u8(scale: float, zero_point: int = 128) -> TensorType:
    return TensorType("uint8", Quantization((float(np.float32(scale)),), zero_point))


def narrow(scale: float, zero_point: int, bits: int) -> TensorType:
    return TensorType("uint8", Quantization((float(np.float32(scale)),), zero_point, bits=bits))


def i16(scale: float) -> TensorType:
    return TensorType("int16", Quantization((float(np.float32(scale)),), 0))


class Builder:
    """Adds operators to a graph, with weights from a fixed sequence of numbers."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.numbers = np.random.default_rng(2026)

    def add(self, op: AnyOp, inputs: list[str], output: str, type: TensorType) -> str:
        return self.graph.add_node(op, inputs, output, type, Source(f"golden.{output}"))

    def weights(self, name: str, shape: tuple[int, ...], wide: bool = False) -> list[str]:
        scales = tuple(float(np.float32(0.004 + 0.001 * (index % 5))) for index in range(shape[0]))
        values = self.numbers.integers(-127, 128, shape).astype(np.int8)
        bias = self.numbers.integers(-3000, 3000, shape[0]).astype(np.int64 if wide else np.int32)
        return [
            self.graph.add_constant(f"{name}.weight", values, Quantization(scales, 0, 0)),
            self.graph.add_constant(f"{name}.bias", bias),
        ]

    def scaled(self, name: str, values: npt.NDArray[np.int8], group: int | None = None) -> str:
        scales = tuple(float(np.float32(0.004 + 0.001 * (index % 5))) for index in range(len(values)))
        return self.graph.add_constant(f"{name}.weight", values, Quantization(scales, 0, 0, group=group))

    def constant(self, name: str, value: npt.NDArray[np.generic], scale: float | None = None) -> str:
        return self.graph.add_constant(name, value, None if scale is None else u8(scale, 0).quantization)


def convolutions(b: Builder) -> str:
    """Float input to integers, and all kinds of convolution."""
    b.graph.add_input("image", (("batch",), 3, ("height",), ("width",)))
    b.add(ops.Quantize(), ["image"], "pixels", u8(0.02))
    stem = ops.Conv((2, 2), (1, 1), (1, 1), (1, 1), clamp=(0.0, None))
    b.add(stem, ["pixels", *b.weights("stem", (6, 3, 3, 3))], "stem", u8(0.03, 0))
    b.add(ops.Requantize(), ["stem"], "widened", i16(0.0002))
    depthwise = ops.Conv((1, 1), (2, 2), (2, 2), (2, 2), groups=6)
    b.add(depthwise, ["widened", *b.weights("depthwise", (6, 1, 3, 3), wide=True)], "depthwise", i16(0.0003))
    point = ops.Conv((1, 1), (0, 0), (0, 0), (1, 1), clamp=(0.0, 6.0))
    b.add(point, ["depthwise", *b.weights("point", (8, 6, 1, 1), wide=True)], "point", u8(6 / 255, 0))
    up = ops.ConvTranspose((2, 2), (1, 1), (1, 1), (1, 1), (1, 1), groups=2)
    return b.add(up, ["point", *b.weights("up", (4, 4, 3, 3))], "up", u8(0.05, 120))


def windows(b: Builder, x: str) -> str:
    """Pooling, resizing, padding, and what joins and cuts."""
    kind = b.graph.types[x]
    b.add(ops.MaxPool((3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), [x], "highest", kind)
    b.add(ops.AveragePool((3, 3), (1, 1), (1, 1), (1, 1), count_include_pad=False), [x], "mean", u8(0.04, 110))
    b.add(ops.Resize("linear", scale=(0.5, 0.5)), [x], "small", u8(0.045))
    twice = tuple((size, 1, "+", 2, "//", 2, "*") for size in ("height", "width"))
    b.add(ops.Resize("nearest", size=twice), ["small"], "large", u8(0.045))
    b.add(ops.Requantize(), ["mean"], "mean_again", kind)
    b.add(ops.Requantize(), ["large"], "large_again", kind)
    b.add(ops.Concat(1), ["highest", "mean_again", "large_again"], "joined", kind)
    b.add(ops.Pad((0, 0, 1, 2), (0, 0, 2, 1), "reflect"), ["joined"], "mirrored", kind)
    b.add(ops.Pad((0, 0, 0, 0), (0, 0, 0, 1)), ["mirrored"], "padded", kind)
    b.add(ops.Slice(1, 1, None, 3), ["padded"], "picked", kind)
    return b.add(ops.AdaptivePool("average", (3, 4)), ["picked"], "pooled", u8(0.03, 100))


def rows(b: Builder, x: str) -> str:
    """Element-wise functions, products, norms and reductions."""
    kind = u8(0.03, 100)
    sigmoid = np.rint(255 / (1 + np.exp(-0.03 * (np.arange(256) - 100.0)))).astype(np.uint8)
    b.add(ops.Table(), [x, b.constant("sigmoid", sigmoid)], "gate", u8(1 / 255, 0))
    b.add(ops.Binary("mul"), [x, "gate"], "gated", u8(0.02, 90))
    b.add(ops.Binary("add", (0.0, None)), ["gated", x], "added", u8(0.04, 0))
    b.add(ops.Reduce("max", (2, 3), True), ["added"], "squeezed", u8(0.04, 0))
    b.add(ops.Expand((-1, -1, 3, 4)), ["squeezed"], "spread", u8(0.04, 0))
    b.add(ops.Binary("sub"), ["added", "spread"], "lowered", u8(0.03, 250))
    gamma, beta = np.linspace(0.5, 2, 4, dtype=np.float32), np.linspace(-1, 1, 4, dtype=np.float32)
    norm = [b.constant("group.gamma", gamma), b.constant("group.beta", beta)]
    b.add(ops.GroupNorm(2, 1e-5), ["lowered", *norm], "grouped", kind)
    b.add(ops.Reshape((("batch",), 4, 12)), ["grouped"], "tokens", kind)
    b.add(ops.Transpose((0, 2, 1)), ["tokens"], "turned", kind)
    layer = [b.constant("layer.gamma", gamma[::-1].copy()), b.constant("layer.beta", beta)]
    b.add(ops.LayerNorm(1, 1e-5), ["turned", *layer], "normed", kind)
    b.add(ops.MatMul(), ["normed", "tokens"], "scores", u8(0.1))
    exponentials = np.rint(np.exp(-0.1 * np.arange(256)) * 2**15).astype(np.int32)
    b.add(ops.Softmax(2), ["scores", b.constant("exponentials", exponentials)], "attention", u8(1 / 256, 0))
    b.add(ops.MatMul(), ["attention", "normed"], "mixed", kind)
    b.add(ops.Linear(), ["mixed", *b.weights("head", (5, 4))], "head", u8(0.05))
    return b.add(ops.Reduce("mean", (1,)), ["head"], "logits", u8(0.02))


def build() -> Graph:
    """The whole network: a dict of three outputs, batch, height and width free."""
    b = Builder()
    b.graph.example = {"batch": 1, "height": 15, "width": 12}
    x = windows(b, convolutions(b))
    logits = rows(b, x)
    b.add(ops.ArgMax(1), [logits], "best", INT64)
    prices = b.graph.add_constant("prices", np.arange(15, dtype=np.uint8).reshape(5, 3), u8(0.5, 0).quantization)
    b.add(ops.Gather(0), [prices, "best"], "price", u8(0.5, 0))
    for name in (x, logits, "price"):
        b.add(ops.Dequantize(), [name], f"{name}_real", FLOAT32)
    b.graph.outputs = (f"{x}_real", f"{logits}_real", "price_real", "best")
    b.graph.structure = {"maps": 0, "rest": [1, {"price": 2, "best": 3}]}
    return b.graph


def schemes() -> Graph:
    """Weights packed in each way, activations of few bits, products of signs: what format 1.1 added."""
    b = Builder()
    b.graph.example = {"batch": 1, "height": 15, "width": 12}
    b.graph.add_input("image", (("batch",), 3, ("height",), ("width",)))
    b.add(ops.Quantize(), ["image"], "x0", narrow(0.3, 7, 4))
    padded = ops.Conv((1, 1), (1, 1), (1, 1), (1, 1))
    draw, shape = b.numbers, (32, 32, 3, 3)
    few = draw.choice(np.array([-90, -41, -12, 0, 7, 33, 64, 120]), (32, 3, 3, 3)).astype(np.int8)
    b.add(padded, ["x0", b.scaled("levels", few)], "x1", narrow(0.5, 8, 4))
    offsets = draw.integers(0, 16, shape) - draw.integers(0, 16, (32, 1, 1, 1))
    b.add(padded, ["x1", b.scaled("rows", offsets.astype(np.int8))], "x2", narrow(2.0, 1, 2))
    factors = np.repeat(draw.integers(1, 19, (32, 4)), 72, axis=1).reshape(shape)
    groups = (draw.integers(-7, 8, shape) * factors).astype(np.int8)
    b.add(padded, ["x2", b.scaled("factors", groups, group=72)], "x3", u8(0.5))
    signs = b.graph.add_constant("signs.table", np.where(np.arange(256) < 128, 0, 2).astype(np.uint8))
    b.add(ops.Table(), ["x3", signs], "signs", narrow(0.75, 1, 2))
    bits = draw.choice(np.array([-1, 1], np.int8), shape)
    b.add(padded, ["signs", b.scaled("bits", bits)], "x4", u8(0.015))
    b.add(ops.Dequantize(), ["x4"], "maps", FLOAT32)
    b.graph.outputs = ("maps",)
    return b.graph


def places() -> Graph:
    """Images sampled at computed places, the largest elements, running sums and integers: the feature "places"."""
    b = Builder()
    b.graph.example = {"batch": 1, "height": 15, "width": 12}
    b.graph.add_input("image", (("batch",), 3, ("height",), ("width",)))
    b.add(ops.Quantize(), ["image"], "pixels", u8(0.02))
    flow = ops.Conv((2, 2), (1, 1), (1, 1), (1, 1))
    b.add(flow, ["pixels", *b.weights("flow", (2, 3, 3, 3))], "flow", i16(0.0001))
    b.add(ops.Transpose((0, 2, 3, 1)), ["flow"], "grid", i16(0.0001))
    b.add(ops.GridSample("bilinear", "reflection"), ["pixels", "grid"], "mirrored", u8(0.02))
    b.add(ops.GridSample("bicubic", "border", True), ["pixels", "grid"], "smooth", i16(0.0002))
    b.add(ops.GridSample("nearest"), ["pixels", "grid"], "rough", u8(0.025, 120))
    b.add(ops.Binary("add"), ["mirrored", "smooth"], "both", u8(0.04))
    b.add(ops.Binary("sub"), ["both", "rough"], "all", u8(0.05))
    b.add(ops.Reshape((("batch",), 3, -1)), ["all"], "rows", u8(0.05))
    b.add(ops.TopK(2, 5), ["rows"], "best", INT64)
    b.add(ops.GatherElements(2), ["rows", "best"], "highest", u8(0.05))
    b.add(ops.CumSum(1), ["highest"], "sums", i16(0.001))
    b.add(ops.IntBinary("mod"), ["best", b.constant("seven", np.array([7]))], "column", INT64)
    b.add(ops.CumSum(2), ["column"], "counts", INT64)
    b.add(ops.Real(), ["counts"], "counted", FLOAT32)
    b.add(ops.Dequantize(), ["all"], "maps", FLOAT32)
    b.add(ops.Dequantize(), ["sums"], "totals", FLOAT32)
    b.graph.outputs = ("maps", "totals", "counts", "counted")
    b.graph.structure = [0, 1, 2, 3]
    return b.graph


GRAPHS = {"operators": build, "schemes": schemes, "places": places}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", choices=GRAPHS)
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    path = options.path
    if path.exists():
        parser.error(f"{path} exists: golden files are never written again")
    model = QuantizedModel(
        GRAPHS[options.graph](), backend="reference", metadata={"purpose": "golden file of this release"}
    )
    numbers = np.random.default_rng(1)
    for shape in ((1, 3, 15, 12), (2, 3, 9, 11)):
        model.add_golden(numbers.normal(size=shape).astype(np.float32))
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
