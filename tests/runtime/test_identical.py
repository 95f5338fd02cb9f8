"""The native library gives the very bits of the reference: every operator, whatever the shapes and the numbers."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from . import cases
from .graphs import run

STRATEGIES = {
    name: getattr(cases, name)()
    for name in (
        "convolutions", "linears", "matmuls", "binaries", "conversions", "pools", "resizes", "reductions", "softmaxes",
        "norms", "movements", "choices", "samples",
    )
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_native_equals_reference(name: str) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        graph, inputs = data.draw(STRATEGIES[name])
        run(graph, *inputs)

    check()
