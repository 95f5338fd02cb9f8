from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = (
    "calibration", "spec", "estimator", "person", "headers", "pictures", "preprocess", "decode", "draw", "evaluate",
    "compare", "overlap", "server", "networks",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    failures, attempts = doctest.testmod(import_module(f"kvant.pose.{name}"))
    assert failures == 0
    assert attempts > 0
