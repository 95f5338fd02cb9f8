"""The float64 definition of pointwise functions and their torch versions agree; malformed programs are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kvant.capture.programs import compile_program
from kvant.errors import GraphError
from kvant.graph.ops import Step
from kvant.graph.pointwise import BINARY, UNARY, evaluate

ATTRIBUTES = {
    "clamp": (-0.5, 0.75), "threshold": (0.3, -2.0), "above": (0.3, -2.0),
    "leaky_relu": (0.1, 0.0), "elu": (0.7, 1.3), "celu": (0.6, 0.0),
    "gelu": (1.0, 0.0), "softplus": (2.0, 5.0), "pow": (3.0, 0.0),
}  # fmt: skip
POSITIVE = {"log", "sqrt", "rsqrt", "reciprocal", "log1p"}


@pytest.mark.parametrize("name", UNARY)
def test_unary_functions(name: str) -> None:
    values = np.linspace(0.05, 9, 101) if name in POSITIVE else np.linspace(-9, 9, 101)
    program = (Step("x"), Step(name, *ATTRIBUTES.get(name, (0.0, 0.0))))
    got = compile_program(program)(torch.from_numpy(values).float(), None).numpy()
    assert np.allclose(evaluate(program, values.astype(np.float32)), got, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", BINARY)
def test_binary_functions(name: str) -> None:
    values, param = np.linspace(-3, 3, 12).reshape(2, 3, 2), np.array([0.5, 2.0, -1.0])
    program = (Step("x"), Step("param"), Step(name))
    torch_result = compile_program(program)(torch.from_numpy(values).float(), torch.tensor(param).float().reshape(3, 1))
    assert np.allclose(evaluate(program, values, param.reshape(3, 1)), torch_result.numpy(), atol=1e-6)
    mixed = (Step("const", 0.4), Step("x"), Step(name))
    assert np.allclose(
        evaluate(mixed, values), compile_program(mixed)(torch.from_numpy(values).float(), None), atol=1e-6
    )


def test_large_inputs_do_not_overflow() -> None:
    huge = np.array([-1e4, 1e4])
    assert evaluate((Step("x"), Step("sigmoid")), huge).tolist() == [0.0, 1.0]
    assert evaluate((Step("x"), Step("silu")), huge).tolist() == [0.0, 1e4]
    assert evaluate((Step("x"), Step("softplus", 1.0, 20.0)), huge).tolist() == [0.0, 1e4]
    assert evaluate((Step("x"), Step("clamp", 0.0, math.inf)), huge).tolist() == [0.0, 1e4]


def test_constants_take_the_shape_of_the_input() -> None:
    assert evaluate((Step("const", 2.0),), np.zeros((2, 3), np.float32)).shape == (2, 3)
    assert evaluate((Step("x"), Step("erf")), np.array([0, 1], np.int64)).tolist() == [0.0, math.erf(1)]


@pytest.mark.parametrize(
    "program",
    [
        (),
        (Step("x"), Step("x")),
        (Step("add"),),
        (Step("x"), Step("add")),
        (Step("x"), Step("sigmoidal")),
        (Step("param"),),
    ],
)
def test_malformed_programs(program: tuple[Step, ...]) -> None:
    with pytest.raises(GraphError):
        evaluate(program, np.zeros(3))


def test_unknown_functions_are_refused_by_torch_too() -> None:
    with pytest.raises(GraphError, match="sigmoidal"):
        compile_program((Step("x"), Step("sigmoidal")))
