"""The native back end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from kvant.errors import BackendError
from kvant.runtime.steps import Work

Array = npt.NDArray[Any]


class NativeBackend:
    """Runs steps in the C library."""

    name = "native"

    def __init__(self) -> None:
        raise BackendError("The native library is not built: install kvant with a C++17 compiler at hand.")

    def bind(self, work: Work, inputs: Sequence[Array], output: Array) -> Callable[[], None]:
        """A function that computes ``output`` from ``inputs``."""
        raise NotImplementedError
