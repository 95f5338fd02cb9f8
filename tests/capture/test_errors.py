"""What cannot be captured, and what the user is told."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kvant.capture import Executor, capture, registry
from kvant.errors import CaptureError, InputError, ModelStateError, ShapeError, UnsupportedOperatorError

from .compare import Function, example

IMAGE = example((1, 3, 8, 8))


def test_a_function_is_no_module() -> None:
    with pytest.raises(CaptureError, match=r"expected a torch.nn.Module, got a function. Wrap"):
        capture(example, [IMAGE])  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="the class Conv2d"):
        capture(nn.Conv2d, [IMAGE])  # type: ignore[arg-type]


def test_training_mode_names_the_module() -> None:
    with pytest.raises(ModelStateError, match=r"the model Sequential is in training mode.*eval\(\)"):
        capture(nn.Sequential(nn.Conv2d(3, 3, 1)), [IMAGE])
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    model[1].train()
    with pytest.raises(ModelStateError, match=r"submodule '1' \(BatchNorm2d\)"):
        capture(model, [IMAGE])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    with torch.no_grad():
        model[0].weight[1, 2] = value
    with pytest.raises(ModelStateError, match=r"parameter '0.weight' holds"):
        capture(model, [IMAGE])


def test_buffers_that_are_not_finite_are_named() -> None:
    model = nn.BatchNorm2d(3).eval()
    model.running_var[0] = float("nan")
    with pytest.raises(ModelStateError, match="buffer 'running_var' holds 1 NaN"):
        capture(model, [IMAGE])


def test_other_devices_and_precisions() -> None:
    with torch.device("meta"):
        model = nn.Conv2d(3, 3, 1).eval()
    with pytest.raises(ModelStateError, match=r"'weight' lives on the device meta; .*cpu\(\)"):
        capture(model, [IMAGE])
    with pytest.raises(ModelStateError, match=r"has dtype torch.float16; .*float\(\)"):
        capture(nn.Conv2d(3, 3, 1).half().eval(), [IMAGE])


def test_example_inputs() -> None:
    model = nn.Conv2d(3, 3, 1).eval()
    with pytest.raises(CaptureError, match="hold no tensor"):
        capture(model, [])
    with pytest.raises(CaptureError, match=r"input 'input' has dtype torch.float64"):
        capture(model, [IMAGE.double()])
    with pytest.raises(CaptureError, match="it is empty"):
        capture(model, [IMAGE[:0]])
    with pytest.raises(CaptureError, match=r"dynamic='size' is unknown, expected one of 'auto'"):
        capture(model, [IMAGE], dynamic="size")  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="channels"):
        capture(model, [example((1, 4, 8, 8))])


def test_every_unsupported_operator_is_listed() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cummax(x, 1).values

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x).kthvalue(2, dim=1, keepdim=True).values
            return y + torch.rand(3, 8, 8)

    with pytest.raises(UnsupportedOperatorError) as caught:
        capture(Net().eval(), [IMAGE])
    lines = caught.value.operators
    assert len(lines) == 3
    assert lines[0].startswith("aten.cummax.default in module path 'inner' at test_errors.py:")
    assert lines[0].endswith("in forward: return torch.cummax(x, 1).values")
    assert lines[1].startswith("aten.kthvalue.default at test_errors.py:")
    assert lines[2].startswith("aten.rand.default") and lines[2].endswith("(its result is random)")


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: x[x > 0], "aten.index.Tensor.*indices of type torch.bool"),
        (lambda x: x.nonzero(), "aten.nonzero"),
        (lambda x: x * x.sum().item(), "aten.item"),
    ],
    ids=["mask", "nonzero", "item"],
)
def test_shapes_and_values_that_depend_on_data(function: object, operator: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=operator):
        capture(Function(function).eval(), [IMAGE])  # type: ignore[arg-type]


def test_control_flow_that_depends_on_data() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x + 1
            return x

    with pytest.raises(
        CaptureError, match=r"cannot trace Net, at test_errors.py:\d+ in forward: if x.sum\(\) > 0:.*depend"
    ) as caught:
        capture(Net().eval(), [IMAGE])
    assert caught.value.__cause__ is not None
    assert "/" not in str(caught.value).split(":")[0]


def test_errors_of_forward_itself() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("weights")

    with pytest.raises(CaptureError, match=r"test_errors.py:\d+ in forward: raise KeyError.*KeyError: 'weights'"):
        capture(Net().eval(), [IMAGE])


def test_state_that_changes() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(UnsupportedOperatorError, match="changes a buffer"):
        capture(Counter().eval(), [IMAGE])


def test_outputs_that_are_no_tensors() -> None:
    with pytest.raises(CaptureError, match="the model returns a str"):
        capture(Function(lambda x: (x, "name")).eval(), [IMAGE])
    with pytest.raises(CaptureError, match="returns no tensor"):
        capture(Function(lambda x: []).eval(), [IMAGE])


def test_active_dropout_and_batch_statistics() -> None:
    with pytest.raises(UnsupportedOperatorError, match="dropout"):
        capture(Function(lambda x: nn.functional.dropout(x, 0.5, training=True)).eval(), [IMAGE])
    with pytest.raises(UnsupportedOperatorError, match="statistics of the batch"):
        capture(nn.BatchNorm2d(3, track_running_stats=False).eval(), [IMAGE])


def test_inputs_of_the_executor() -> None:
    executor = Executor(capture(nn.Conv2d(3, 4, 3).eval(), [IMAGE]))
    with pytest.raises(InputError, match="2 inputs are given"):
        executor.run([IMAGE, IMAGE])
    with pytest.raises(InputError, match="rank 3"):
        executor.run([IMAGE[0]])
    with pytest.raises(InputError, match=r"dtype torch.int64, expected batch x 3 x height x width of float32"):
        executor.run([IMAGE.long()])
    with pytest.raises(InputError, match="expected batch x 3"):
        executor.run([example((1, 4, 8, 8))])
    with pytest.raises(ShapeError, match="conv"):
        executor.run([example((1, 3, 2, 2))])


def test_torch_stays_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval(), [IMAGE])
        with pytest.raises(CaptureError):
            capture(Function(lambda x: list(torch.masked_select(x, x > 0))).eval(), [IMAGE])
    output = capfd.readouterr()
    assert output.out == output.err == ""
    assert logging.root.manager.disable == disabled


def test_the_list_of_operators_that_the_message_points_to_is_complete() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    listed = re.findall(r"`(\w+(?:\.\w+)?)`", text.partition("\n## ")[2])
    assert sorted(listed) == sorted(name.removesuffix(".default") for name in registry.supported())


def test_a_join_of_indices_and_numbers_is_refused() -> None:
    """SAM joins labels of points to a -1 of float32."""

    def forward(x: Tensor, labels: Tensor) -> Tensor:
        return x * torch.cat([labels, -torch.ones(labels.shape[0], 1)], 1)

    with pytest.raises(UnsupportedOperatorError, match=r"cat.*a join of float32 and int64"):
        capture(Function(forward).eval(), [torch.rand(2, 4), torch.randint(0, 9, (2, 3))])


class KeyValueCache:
    pass


def test_a_cache_that_is_returned_is_named_with_what_to_do() -> None:
    with pytest.raises(CaptureError, match=r"returns a KeyValueCache.*use_cache=False"):
        capture(Function(lambda x: (x * 2, KeyValueCache())).eval(), [torch.rand(2, 4)])


def test_what_has_a_size_that_depends_on_data_is_refused_with_advice() -> None:
    with pytest.raises(UnsupportedOperatorError, match="chosen outside the model"):
        capture(Function(lambda x: x.nonzero()).eval(), [torch.rand(2, 8)])
