"""Interpolation of the trailing axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kvant.capture.builder import Activation, Builder, Operand, Size, need_activation
from kvant.capture.operators.volumes import planes_then_depth
from kvant.capture.registry import handles
from kvant.graph import ops

Mode = Literal["nearest", "nearest-exact", "linear"]


def _resize(
    t: Builder, x: Operand, mode: Mode, scales: Sequence[float] | None, align_corners: bool = False
) -> Activation:
    x = need_activation(x, "the operand")
    if x.rank == 5:
        return _resize3d(t, x, mode, scales, align_corners)
    if scales:
        return t.emit(ops.Resize(mode, scale=tuple(float(scale) for scale in scales), align_corners=align_corners), x)
    return t.emit(ops.Resize(mode, size=t.dims(t.shape[2:]), align_corners=align_corners), x)


def _resize3d(t: Builder, x: Activation, mode: Mode, scales: Sequence[float] | None, align_corners: bool) -> Activation:
    depth, height, width = t.shape[2:]
    if scales:
        plane, line = (tuple(map(float, scales[1:])), (float(scales[0]), 1.0))
        return planes_then_depth(
            t, x, ops.Resize(mode, scale=plane, align_corners=align_corners),
            ops.Resize(mode, scale=line, align_corners=align_corners),
        )  # fmt: skip
    sizes = t.dims((height, width)), t.dims((depth, height * width))
    plane_op, line_op = (ops.Resize(mode, size=size, align_corners=align_corners) for size in sizes)
    return planes_then_depth(t, x, plane_op, line_op)


def _register_vec(operator: str, mode: Mode) -> None:
    def handler(
        t: Builder,
        x: Operand,
        output_size: Sequence[Size] | None,
        scale_factors: Sequence[float] | None,
        align_corners: bool = False,
    ) -> Activation:
        return _resize(t, x, mode, scale_factors, align_corners)

    handles(f"{operator}.vec")(handler)


def _register_default(operator: str, mode: Mode) -> None:
    def handler(
        t: Builder,
        x: Operand,
        output_size: Sequence[Size],
        scales_d: float | None = None,
        scales_h: float | None = None,
        scales_w: float | None = None,
        scales: float | None = None,
        align_corners: bool = False,
    ) -> Activation:
        # With a size given, torch's scales are hints for the coordinates; they count only when all are there.
        given = [scale for scale in (scales, scales_d, scales_h, scales_w) if scale is not None]
        return _resize(t, x, mode, given if len(given) == len(output_size) else None, align_corners)

    handles(f"{operator}.default")(handler)


for _rank in (1, 2, 3):
    for _prefix, _mode in (("upsample_nearest", "nearest"), ("_upsample_nearest_exact", "nearest-exact")):
        _register_vec(f"{_prefix}{_rank}d", _mode)  # type: ignore[arg-type]
        _register_default(f"{_prefix}{_rank}d", _mode)  # type: ignore[arg-type]
for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
    _register_vec(_name, "linear")
    _register_default(_name, "linear")
