"""Examples in docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import kvant

SOURCE = Path(kvant.__file__).parent
PATHS = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if path.name != "__main__.py")
MODULES = [".".join(("kvant", *path.with_suffix("").parts)).removesuffix(".__init__") for path in PATHS]
# What examples take as imported.
NAMES = {"kvant": kvant, "np": np, "torch": torch, "nn": torch.nn}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), extraglobs=NAMES, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
