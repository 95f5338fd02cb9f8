"""What the demo promises and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from kvant.pose.evaluate import Agreement
from kvant.pose.layout import Float32Array
from kvant.pose.spec import NetworkSpec

MAX_SIZE_RATIO = 0.28
MIN_AGREEMENT = 0.95


def sqnr_db(reference: Sequence[Float32Array], other: Sequence[Float32Array]) -> float:
    """Power of the reference over the power of the difference, in dB, over all arrays.

    >>> sqnr_db([np.array([10.0, 0.0])], [np.array([10.0, 1.0])])
    20.0
    """
    signal = sum(float((a.astype(np.float64) ** 2).sum()) for a in reference)
    noise = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in zip(reference, other, strict=True))
    return float("inf") if noise == 0 else round(10 * float(np.log10(signal / noise)), 2)


def output_sqnr(
    spec: NetworkSpec, reference: Sequence[Float32Array], other: Sequence[Float32Array]
) -> dict[str, float]:
    """The SQNR of heat maps and of part-affinity fields."""
    pairs = [(spec.output.split(a), spec.output.split(b)) for a, b in zip(reference, other, strict=True)]
    return {
        name: sqnr_db([a[index] for a, _ in pairs], [b[index] for _, b in pairs])
        for index, name in enumerate(("heat", "paf"))
    }


def agreement_fields(agreement: Agreement) -> dict[str, Any]:
    """The summary's fields about key points and people."""
    return {
        "keypoints_float": agreement.keypoints,
        "keypoint_agreement": round(agreement.share, 4),
        "people_found": agreement.people_found,
    }


def broken_promises(summary: dict[str, Any]) -> list[str]:
    """A sentence for each promise that does not hold."""
    ratio = summary["file_bytes"] / summary["float_bytes"]
    checks = [
        (ratio > MAX_SIZE_RATIO, f"the file has {ratio:.3f} x the bytes of the float weights, over {MAX_SIZE_RATIO}"),
        (summary["people_float"] == 0, "the float model found nobody: use pictures that show people"),
        (
            summary["keypoint_agreement"] < MIN_AGREEMENT,
            f"the int8 model found {summary['keypoint_agreement']:.1%} of the key points, under {MIN_AGREEMENT:.0%}",
        ),
        (
            summary["people_found"] < summary["people_float"],
            f"the int8 model found {summary['people_found']} of {summary['people_float']} people of the float model",
        ),
        (summary["torch_imported"], "torch was imported in the process that must do without it"),
    ]
    return [sentence[0].upper() + sentence[1:] + "." for broken, sentence in checks if broken]


def shares_text(shares: dict[str, Any]) -> str:
    """In which integers a network multiplies, in words."""
    parts = [("int8xint8", "int8 x int8"), ("int16xint8", "int16 x int8"), ("int16xint16", "int16 x int16")]
    return ", ".join(f"{shares[name]:.1%} {title}" for name, title in parts if shares.get(name))


def rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The report: what, float, int8."""
    size, ratio = summary["file_bytes"], summary["file_bytes"] / summary["float_bytes"]
    people = f"{summary['people_int8']}, {summary['people_found']} of them the same"
    threads = f"{summary['threads']} thread{'s' if summary['threads'] > 1 else ''}"
    return [
        ("size", f"{summary['float_bytes'] / 1e6:.2f} MB", f"{size / 1e6:.2f} MB ({ratio:.3f} x)"),
        (f"time a picture, {threads}", f"{summary['float_ms']:.0f} ms", f"{summary['int8_ms']:.0f} ms"),
        ("people", str(summary["people_float"]), people),
        ("key points", str(summary["keypoints_float"]), f"{summary['keypoint_agreement']:.1%} of them found"),
        ("SQNR of heat maps, PAFs", "", "{heat:.1f} dB, {paf:.1f} dB".format(**summary["sqnr_db"])),
        (
            "multiplications",
            "float32",
            shares_text(summary),
        ),
        ("torch imported", "yes", "yes" if summary["torch_imported"] else "no"),
    ]


def show(summary: dict[str, Any], console: Console) -> None:
    """Print the report: a table on a terminal, plain lines elsewhere."""
    titles = ("", "float, torch", f"int8, kvant ({summary['backend']})")
    if not console.is_terminal:
        for name, left, right in [titles, *rows(summary)]:
            console.print(f"{name:28}{left:16}{right}", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(*titles, title=f"{summary['network']} at {' x '.join(map(str, summary['input'][2:]))}")
    for row in rows(summary):
        table.add_row(*row)
    console.print(table)
