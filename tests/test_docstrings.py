"""Examples in docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch

import kvant

MODULES = sorted(
    entry.name for entry in pkgutil.walk_packages(kvant.__path__, "kvant.") if not entry.name.endswith("__main__")
)
# What examples take as imported.
NAMES = {"kvant": kvant, "np": np, "torch": torch, "nn": torch.nn}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), extraglobs=NAMES, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
