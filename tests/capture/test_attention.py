"""Networks built on attention: torch's encoder, a vision transformer, a shifted-window block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvant.capture import capture

from .compare import check, compare, example


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks written with nn.MultiheadAttention."""

    def __init__(self, size: int = 32, patch: int = 8, width: int = 16, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(example((1, 1, width), 1))
        self.positions = nn.Parameter(example((1, (size // patch) ** 2 + 1, width), 2))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.encoder(x))[:, 0])


class ResizedPositions(nn.Module):
    """Position embeddings interpolated to the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(example((1, 8, 4, 4), 3))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image)
        positions = F.interpolate(self.positions, size=x.shape[2:], mode="bilinear", align_corners=False)
        return (x + positions).flatten(2).transpose(1, 2)


class WindowBlock(nn.Module):
    """Attention within shifted windows, with relative position bias and a mask, as in Swin."""

    def __init__(self, width: int = 8, heads: int = 2, window: int = 4, shift: int = 2, size: int = 8) -> None:
        super().__init__()
        self.width, self.heads, self.window, self.shift = width, heads, window, shift
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.bias = nn.Parameter(example(((2 * window - 1) ** 2, heads), 4))
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offsets = (grid[:, :, None] - grid[:, None, :]) + window - 1
        self.register_buffer("index", offsets[0] * (2 * window - 1) + offsets[1])
        self.register_buffer("mask", self._mask(size))

    def _mask(self, size: int) -> Tensor:
        regions = torch.zeros(1, size, size, 1)
        spans = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for number, (rows, columns) in enumerate((r, c) for r in spans for c in spans):
            regions[:, rows, columns, :] = number
        windows = self._split(regions).squeeze(-1)
        differs = windows[:, None, :] != windows[:, :, None]
        return torch.zeros(differs.shape).masked_fill(differs, float("-inf"))

    def _split(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, c)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        windows = self._split(torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)))
        count, tokens, _ = windows.shape
        qkv = self.qkv(windows).reshape(count, tokens, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.bias[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        masked = scores.view(n, -1, self.heads, tokens, tokens) + self.mask[:, None]
        mixed = (masked.view(count, self.heads, tokens, tokens).softmax(-1) @ v).transpose(1, 2)
        y = self.proj(mixed.reshape(count, tokens, c))
        y = y.view(n, h // self.window, w // self.window, self.window, self.window, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(x)


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}], ids=["post-norm", "pre-norm"])
def test_transformer_encoder(options: dict[str, object]) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)  # type: ignore[arg-type]
    graph = check(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), [example((1, 7, 16))], [example((3, 12, 16), 1)]
    )
    assert graph.inputs[0].shape == (("batch",), ("length",), 16)


def test_transformer_encoder_with_sequence_first() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    check(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), [example((7, 3, 16))], [example((9, 2, 16), 1)])


def test_the_fast_path_of_attention_is_left_as_it_was() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    capture(nn.MultiheadAttention(8, 2, batch_first=True).eval(), [example((2, 5, 8))] * 3)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_attention_with_weights_and_a_causal_mask() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            mixed, weights = self.attention(x, x, x, attn_mask=mask)
            return mixed, weights

    graph = check(Causal(), [example((1, 6, 8))], [example((4, 6, 8), 1)], [example((2, 9, 8), 1)])
    assert graph.inputs[0].shape == (("batch",), ("length",), 8)


def test_causal_attention_of_one_call() -> None:
    check(
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        [example((1, 2, 6, 8))],
        [example((3, 2, 6, 8))],
    )


def test_attention_with_a_mask_that_is_an_input() -> None:
    mask = torch.where(torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.3, 0.0, -50.0)
    x = example((2, 2, 6, 8))
    check(lambda x, mask: F.scaled_dot_product_attention(x, x, x, attn_mask=mask), [x, mask])


def test_vision_transformer() -> None:
    # 35 x 33 pixels are as many whole patches as 32 x 32.
    graph = check(
        VisionTransformer(), [example((1, 3, 32, 32))], [example((3, 3, 32, 32), 1)], [example((1, 3, 35, 33))]
    )
    assert graph.inputs[0].shape[0] == ("batch",)


def test_interpolated_positions_become_a_constant() -> None:
    graph = check(ResizedPositions(), [example((1, 3, 24, 32))], [example((2, 3, 24, 32), 1)])
    assert graph.inputs[0].shape[2:] == (24, 32)
    assert "resize" not in {node.op.kind for node in graph.nodes}


def test_window_block() -> None:
    graph = check(WindowBlock(), [example((1, 8, 8, 8))], [example((3, 8, 8, 8), 1)])
    assert all(abs(value).max() < 1e6 for value in graph.constants.values())


def test_unshifted_windows_at_any_size() -> None:
    model = WindowBlock(shift=0)
    model.mask = torch.zeros(1, 1, 1)
    model.eval()
    graph = capture(model, [example((1, 8, 12, 8))])
    compare(model, graph, [example((1, 8, 12, 8))])
