"""Every supported operator: the module, its graph, and its prepared graph agree, also at another size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvant.errors import UnsupportedOperatorError

from .compare import check, example

IMAGE, OTHER_IMAGE = (1, 4, 12, 16), (3, 4, 20, 24)
SERIES, OTHER_SERIES = (1, 4, 16), (2, 4, 25)
TOKENS, OTHER_TOKENS = (1, 6, 8), (3, 9, 8)
WEIGHT = example((6, 8), 5)


def agree(subject: nn.Module | Callable[..., object], shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    graph = check(subject, [example(shape)], [example(other, 1)])
    assert any(isinstance(dim, tuple) for dim in graph.inputs[0].shape)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2)),
    "no bias": lambda: nn.Conv2d(4, 6, 1, bias=False),
    "dilation": lambda: nn.Conv2d(4, 6, 3, dilation=2),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, (3, 5), groups=4),
    "same": lambda: nn.Conv2d(4, 6, (3, 4), padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "same, reflect": lambda: nn.Conv2d(4, 6, (3, 4), padding="same", padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "transposed, groups": lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2, bias=False),
    "transposed, dilation": lambda: nn.ConvTranspose2d(4, 6, 3, dilation=2),
    "norm": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
    "transposed, norm": lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6)),
}
SERIES_CONVOLUTIONS = {
    "plain": lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1),
    "same": lambda: nn.Conv1d(4, 6, 4, padding="same", groups=2),
    "circular": lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
    "norm": lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU6()),
}
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.5, 0.7),
    "leaky_relu": nn.LeakyReLU(0.2),
    "elu": nn.ELU(0.7),
    "selu": nn.SELU(),
    "celu": nn.CELU(0.6),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU("tanh"),
    "softplus": nn.Softplus(2.0, 1.0),
    "logsigmoid": nn.LogSigmoid(),
    "prelu": nn.PReLU(4),
    "prelu of one": nn.PReLU(),
    "threshold": nn.Threshold(0.1, 20.0),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "softshrink": nn.Softshrink(0.3),
    "identity": nn.Identity(),
    "dropout": nn.Dropout(),
    "dropout2d": nn.Dropout2d(),
    "softmax": nn.Softmax(dim=1),
    "log_softmax": nn.LogSoftmax(dim=-1),
}
POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "clamp min": lambda x: x.clamp(min=0.1),
    "clamp max": lambda x: x.clamp_max(0.1),
    "exp": torch.exp,
    "log": lambda x: torch.log(x.abs() + 1),
    "sqrt": lambda x: torch.sqrt(x * x + 1),
    "rsqrt": lambda x: torch.rsqrt(x * x + 1),
    "pow": lambda x: (x.abs() + 0.1) ** 1.7,
    "cube": lambda x: x**3,
    "square": torch.square,
    "abs": torch.abs,
    "neg": lambda x: -x,
    "reciprocal": lambda x: 1 / (x.abs() + 1),
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "round": torch.round,
    "floor": torch.floor,
    "sign": torch.sign,
    "base two": lambda x: 2**x,
    "expm1": torch.expm1,
    "log1p": lambda x: torch.log1p(x.abs()),
    "h-swish": lambda x: x * F.relu6(x + 3) / 6,
    "swish": lambda x: x * torch.sigmoid(x),
    "written mish": lambda x: x * torch.tanh(F.softplus(x)),
    "affine": lambda x: 2.5 - (x * 3 + 1) / 4,
    "alpha": lambda x: torch.add(x, x.tanh(), alpha=0.5),
    "rsub": lambda x: torch.rsub(x, 1.5),
    "floor divide": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "where": lambda x: torch.where(MASK, x, -2.0),
    "masked fill": lambda x: x.masked_fill(MASK, 3.0),
    "clamp by tensor": lambda x: torch.clamp(x, torch.zeros(4, 1, 1)),
}
MASK = torch.tensor([True, False, True, True]).reshape(4, 1, 1)
ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (b.abs() + 1),
    "alpha": lambda a, b: torch.sub(a, b, alpha=2),
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "broadcast": lambda a, b: a * b.mean((2, 3), keepdim=True),
    "channels": lambda a, b: a[:, :1] + b,
    "constant": lambda a, b: a * torch.arange(4.0).reshape(4, 1, 1) + b,
    "clamped": lambda a, b: F.relu6(a + b),
}
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(x.shape[0], 2, 2, x.shape[2], x.shape[3]),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "flatten": lambda x: x.flatten(2),
    "flatten all": lambda x: x.flatten(1).tanh(),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, -1).contiguous(),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(-1).relu(),
    "movedim": lambda x: x.movedim(1, -1),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "expand as": lambda x: x.mean(1, keepdim=True).expand_as(x),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat more": lambda x: x.mean(1).repeat(2, 1, 1, 1),
    "repeat interleave": lambda x: x.repeat_interleave(2, dim=1),
    "slice": lambda x: x[:, 1:3, 2:, :-1],
    "step": lambda x: x[:, :, ::2, 1::2],
    "focus": lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1),
    "select": lambda x: x[:, 2] + x[:, -1],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "half": lambda x: x[:, :, : x.shape[2] // 2],
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "split even": lambda x: sum(x.split(2, 1)),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "stack": lambda x: torch.stack([x, x * 2], 2),
    "cat": lambda x: torch.cat([x, x.tanh(), torch.ones(1, 2, 1, 1).expand_as(x[:, :2])], 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.7),
    "crop": lambda x: F.pad(x, (-1, 2, 0, -3)),
    "pad reflect": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    "roll": lambda x: x.roll((2, -3), (2, 3)),
    "flip": lambda x: x.flip(1),
    "index select": lambda x: x.index_select(1, torch.tensor([3, 0, 0])),
    "index": lambda x: x[:, [2, -1]],
    "grid": lambda x: x[:, :, torch.tensor([[0], [3]]), torch.tensor([1, 2, 5])],
    "multiple of 8": lambda x: F.pad(x, (0, (8 - x.shape[3] % 8) % 8, 0, (8 - x.shape[2] % 8) % 8)),
}
WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max dilated": lambda x: F.max_pool2d(x, (2, 3), 1, dilation=2),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average pad": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average inner": lambda x: F.avg_pool2d(x, 3, 2, 1, False, False),
    "average divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive keep": lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    "global max": lambda x: F.adaptive_max_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "mean keep": lambda x: x.mean(-1, keepdim=True),
    "mean all": lambda x: x.mean((1, 2, 3)),
    "sum": lambda x: x.sum(1),
    "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: x.amin(1, keepdim=True),
    "max axis": lambda x: x.max(1).values,
    "min axis": lambda x: x.min(dim=2, keepdim=True)[0],
    "argmax": lambda x: x.argmax(1),
    "argmax keep": lambda x: x.argmax(1, keepdim=True),
    "norm": lambda x: x.norm(dim=1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std(1, keepdim=True, unbiased=False),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest down": lambda x: F.interpolate(x, scale_factor=0.5),
    "nearest size": lambda x: F.interpolate(x, size=(7, 9)),
    "exact": lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear align": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "bilinear size": lambda x: F.interpolate(x, size=(x.shape[2] * 2 + 1, x.shape[3] // 2), mode="bilinear"),
    "bilinear odd": lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=False),
    "same size": lambda x: (
        F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:], mode="bilinear", align_corners=False) + x
    ),
}
NORMS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "group plain": lambda: nn.GroupNorm(2, 4, affine=False),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance plain": lambda: nn.InstanceNorm2d(4),
    "local response": lambda: nn.LocalResponseNorm(3),
    "batch twice": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)),
}
SEQUENCES: dict[str, Callable[[], nn.Module] | Callable[[Tensor], Tensor]] = {
    "max 1d": lambda x: F.max_pool1d(x, 2),
    "average 1d": lambda x: F.avg_pool1d(x, 3, 2, 1),
    "adaptive 1d": lambda x: F.adaptive_avg_pool1d(x, 4),
    "global 1d": lambda x: F.adaptive_max_pool1d(x, 1),
    "nearest 1d": lambda x: F.interpolate(x, scale_factor=2),
    "pad 1d": lambda x: F.pad(x, (2, 3), mode="reflect"),
}
MATRICES: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ x.transpose(1, 2),
    "bmm": lambda x: torch.bmm(x.transpose(1, 2), x),
    "constant": lambda x: x @ WEIGHT.t(),
    "left constant": lambda x: WEIGHT @ x.transpose(1, 2),
    "vector": lambda x: x @ WEIGHT[0],
    "einsum": lambda x: torch.einsum("nte,fe->ntf", x, WEIGHT),
    "einsum of two": lambda x: torch.einsum("nie,nje->nij", x, x),
    "baddbmm": lambda x: torch.baddbmm(x, x @ x.transpose(1, 2), x, beta=0.5, alpha=2),
    "addmm": lambda x: torch.addmm(WEIGHT[:, 0], x.mean(1), WEIGHT.t()),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "scaled": lambda x: F.scaled_dot_product_attention(x, x.tanh(), x, scale=0.3),
    "rms": lambda x: F.rms_norm(x, (8,), eps=1e-6),
    "layer plain": lambda x: F.layer_norm(x, (8,)),
}
LAYERS = {
    "linear": lambda: nn.Linear(8, 5),
    "linear relu": lambda: nn.Sequential(nn.Linear(8, 5, bias=False), nn.ReLU()),
    "layer norm": lambda: nn.LayerNorm(8),
    "rms norm": lambda: nn.RMSNorm(8),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    agree(CONVOLUTIONS[name](), IMAGE, OTHER_IMAGE)


@pytest.mark.parametrize("name", SERIES_CONVOLUTIONS)
def test_convolutions_over_one_axis(name: str) -> None:
    agree(SERIES_CONVOLUTIONS[name](), SERIES, OTHER_SERIES)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    agree(ACTIVATIONS[name], IMAGE, OTHER_IMAGE)


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise(name: str) -> None:
    agree(POINTWISE[name], IMAGE, OTHER_IMAGE)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name: str) -> None:
    pair, other = [example(IMAGE), example(IMAGE, 1)], [example(OTHER_IMAGE), example(OTHER_IMAGE, 1)]
    check(ARITHMETIC[name], pair, other)


@pytest.mark.parametrize("name", SHAPES)
def test_movement(name: str) -> None:
    agree(SHAPES[name], IMAGE, OTHER_IMAGE)


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_and_reductions(name: str) -> None:
    agree(WINDOWS[name], IMAGE, OTHER_IMAGE)


@pytest.mark.parametrize("name", NORMS)
def test_normalization(name: str) -> None:
    agree(NORMS[name](), IMAGE, OTHER_IMAGE)


@pytest.mark.parametrize("name", SEQUENCES)
def test_one_axis(name: str) -> None:
    agree(SEQUENCES[name], SERIES, OTHER_SERIES)


@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name: str) -> None:
    agree(MATRICES[name], TOKENS, OTHER_TOKENS)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    agree(LAYERS[name](), TOKENS, OTHER_TOKENS)


def test_batch_norm_of_a_matrix() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU())
    check(model, [example((1, 8))], [example((5, 8), 1)])


def test_embedding() -> None:
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 3))
    graph = check(model, [torch.tensor([[1, 2, 10, 0]])], [torch.tensor([[5, 5], [0, 9], [3, 3]])])
    assert graph.inputs[0].type.dtype == "int64"


class Registers(nn.Module):
    """A vision transformer's tokens: it may have registers beside the class token, and has none."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.randn(1, count, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], self.registers.expand(x.shape[0], -1, -1), x[:, 1:]], 1)


@pytest.mark.parametrize("count", [0, 2])
def test_constant_tokens_may_be_none(count: int) -> None:
    agree(Registers(count), TOKENS, OTHER_TOKENS)


def test_integer_constants_join_numbers() -> None:
    check(lambda x: torch.cat([x, torch.ones(1, 1, 8, dtype=torch.int64)], 1), [example(TOKENS)])


@pytest.mark.parametrize("options", [
    {"kernel_size": 2, "stride": 2}, {"kernel_size": (4, 2), "stride": (4, 2)}, {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": 2, "padding": 1, "dilation": (1, 2)}, {"kernel_size": (9, 1), "padding": (4, 0)},
])  # fmt: skip
def test_patches_side_by_side(options: dict[str, int]) -> None:
    agree(nn.Unfold(**options), IMAGE, OTHER_IMAGE)


def test_patches_joined_to_a_map() -> None:
    check(lambda x: F.fold(F.unfold(x, 2, stride=2).relu(), (12, 16), 2, stride=2), [example(IMAGE)])


def test_a_sum_of_patches_that_overlap_is_refused() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"col2im.*patches that overlap"):
        check(lambda x: F.fold(F.unfold(x, 3, padding=1), (12, 16), 3, padding=1), [example(IMAGE)])


@pytest.mark.parametrize(("dimension", "size", "step"), [(1, 2, 2), (-1, 4, 4), (2, 5, 3), (3, 4, 1), (2, 5, 5)])
def test_windows_side_by_side(dimension: int, size: int, step: int) -> None:
    check(lambda x: x.unfold(dimension, size, step), [example(IMAGE)])


def test_an_assignment_to_every_third_element() -> None:
    """Pose networks of the YOLO family make probabilities of the third number of each key point so."""

    def forward(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 2::3] = y[:, 2::3].sigmoid()
        y[..., 1:-1:2] = 0.5
        return y

    check(forward, [example((2, 6, 5))], [example((3, 6, 5), 1)])


def test_constants_take_the_type_of_what_is_computed() -> None:
    agree(lambda x: x * torch.arange(4).type_as(x)[:, None, None], IMAGE, OTHER_IMAGE)


def test_maps_of_no_channels_and_maps_that_are_filled_later() -> None:
    def forward(x: Tensor) -> Tensor:
        none = torch.empty(x.shape[0], 0, x.shape[2], x.shape[3])
        filled = torch.empty_like(x)
        filled[:] = x * 2
        return torch.cat([x, none, filled], 1)

    agree(forward, IMAGE, OTHER_IMAGE)


def test_constants_by_unknown_operators_leave_the_batch_free() -> None:
    def forward(x: Tensor) -> Tensor:
        return x * torch.empty_strided((x.shape[3],), (1,)).fill_(2.0)

    graph = check(forward, [example(IMAGE)], [example((3, *IMAGE[1:]), 1)])
    assert graph.inputs[0].shape == (("batch",), *IMAGE[1:])
