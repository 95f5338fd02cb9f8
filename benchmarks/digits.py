"""Accuracy and size by scheme: small networks, trained here on scikit-learn's 8 x 8 digits, in every kind of integers.

python benchmarks/digits.py
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import arguments, conditions, print_table, write_json
from safetensors import safe_open
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import kvant
from kvant import ActivationScheme, Recipe, Rule, WeightScheme

TRAINED = 1200
EPOCHS = 20
COLUMNS = ["scheme", "accuracy", "as float", "bytes of weights", "bytes of the file"]


class Signs(nn.Module):
    """-1 and 1; the gradient passes where the input is within them (Courbariaux et al. 2016)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return torch.sign(x)
        clipped = torch.clamp(x, -1, 1)
        return clipped + (torch.sign(x) - clipped).detach()


class BinaryConv(nn.Conv2d):
    """A convolution trained with the signs of its weights times their mean magnitude (Rastegari et al. 2016)."""

    def binary(self) -> torch.Tensor:
        """The weights that training uses."""
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        return torch.where(self.weight >= 0, scale, -scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight + (self.binary() - self.weight).detach() if self.training else self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def float_network() -> nn.Sequential:
    """Three convolutions with batch norm and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def sign_network() -> nn.Sequential:
    """The same, whose second and third convolution multiply signs."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), Signs(),
        BinaryConv(32, 64, 3, 1, 1), nn.MaxPool2d(2), nn.BatchNorm2d(64), Signs(),
        BinaryConv(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures (1797, 1, 8, 8) in 0 to 1, in a fixed random order, and their labels."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pictures = torch.from_numpy((digits.images[order] / 16).astype(np.float32))
    return pictures[:, None], torch.from_numpy(digits.target[order])


def train(model: nn.Sequential, pictures: torch.Tensor, labels: torch.Tensor) -> nn.Sequential:
    """Train on all given pictures; binary weights are then what they were trained as."""
    torch.manual_seed(0)
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=EPOCHS * (len(pictures) // 50))
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(pictures)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    for module in model:
        if isinstance(module, BinaryConv):
            module.weight.data = module.binary().detach()
    return model.eval()


@dataclass
class Trained:
    """A trained network, pictures that it was not trained on, and what it makes of them."""

    model: nn.Sequential
    calibration: list[torch.Tensor]
    pictures: torch.Tensor
    labels: torch.Tensor
    wanted: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        with torch.inference_mode():
            self.wanted = self.model(self.pictures).argmax(1)

    def accuracy(self, answers: torch.Tensor) -> float:
        """The share of right answers."""
        return float((answers == self.labels).double().mean())


def prepare(signs: bool = False) -> Trained:
    """A network, trained; quick enough for a test."""
    pictures, labels = data()
    model = train(sign_network() if signs else float_network(), pictures[:TRAINED], labels[:TRAINED])
    return Trained(model, list(pictures[:256].split(32)), pictures[TRAINED:], labels[TRAINED:])


# No more bits than the scheme says.
EXACTLY: dict[str, Any] = {"target_sqnr": None, "fine_weights": False}
KEPT = WeightScheme(bits=8)
RECIPES: dict[str, Recipe] = {
    "W8A8": Recipe(**EXACTLY),
    "W8A16": Recipe(activations=ActivationScheme(16), **EXACTLY),
    "W4A8": Recipe(WeightScheme(4), **EXACTLY),
    "W4A8, groups of 16 channels": Recipe(WeightScheme(4, granularity="group", group=16), **EXACTLY),
    "W4A4": Recipe(WeightScheme(4), ActivationScheme(4), **EXACTLY),
    "W3A8": Recipe(WeightScheme(3), **EXACTLY),
    "W2A8": Recipe(WeightScheme(2), **EXACTLY),
    "W2A8, asymmetric": Recipe(WeightScheme(2, "asymmetric"), **EXACTLY),
    "W1A8": Recipe(WeightScheme(1), rules=(Rule("12", weights=KEPT),), **EXACTLY),
    "powers of two, W8A8": Recipe(WeightScheme(8, "power_of_two"), ActivationScheme(8, "power_of_two"), **EXACTLY),
    "log2 weights, W4A8": Recipe(WeightScheme(4, "log2"), **EXACTLY),
    "additive powers of two, W4A8": Recipe(WeightScheme(4, "apot"), **EXACTLY),
    "codebook, W4A8": Recipe(WeightScheme(4, "codebook"), **EXACTLY),
    "codebook, W2A8": Recipe(WeightScheme(2, "codebook"), **EXACTLY),
    "log2 activations, W8A4": Recipe(activations=ActivationScheme(4, "log2"), **EXACTLY),
    "codebook activations, W8A4": Recipe(activations=ActivationScheme(4, "codebook"), **EXACTLY),
}
# Of the network of signs: the first and the last layer keep 8 bits, as in the paper.
XNOR = Recipe(
    WeightScheme(1),
    ActivationScheme(1, "symmetric"),
    (Rule("0", weights=KEPT), Rule("12", weights=KEPT), Rule("1[01]", activations=ActivationScheme(8)),
     Rule("9", activations=ActivationScheme(8))),
    **EXACTLY,
)  # fmt: skip


def quantize(trained: Trained, recipe: Recipe) -> kvant.QuantizedModel:
    """The network in the integers of ``recipe``."""
    example = trained.calibration[0][:1]
    return kvant.quantize(trained.model, example, calibration=trained.calibration, recipe=recipe, progress=False)


def sizes(quantized: kvant.QuantizedModel) -> tuple[int, int]:
    """Bytes of the weights as the file holds them, and of the whole file."""
    names = [name for name, value in quantized.graph.constants.items() if value.ndim > 1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.kvant"
        quantized.save(path)
        # A .kvant file is a safetensors file; a packed weight has a table beside it.
        with safe_open(path, "numpy") as file:
            held = [name for name in file.keys() if name.removesuffix(".packing") in names]  # noqa: SIM118
            return sum(file.get_tensor(name).nbytes for name in held), path.stat().st_size


def measure(trained: Trained, recipe: Recipe) -> dict[str, Any]:
    """What one recipe gives."""
    quantized = quantize(trained, recipe)
    answers = quantized(trained.pictures).argmax(1)
    weights, file = sizes(quantized)
    return {
        "accuracy": trained.accuracy(answers),
        "agreement": float((answers == trained.wanted).double().mean()),
        "weights": weights,
        "file": file,
    }


def rows(report: dict[str, Any]) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            name,
            f"{entry['accuracy']:.1%}",
            f"{entry['agreement']:.1%}" if "agreement" in entry else "",
            f"{entry['weights']:,}" if "weights" in entry else "",
            f"{entry['file']:,}" if "file" in entry else "",
        ]
        for name, entry in report["results"].items()
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    plain, signs = prepare(), prepare(signs=True)
    results: dict[str, Any] = {"float32": {"accuracy": plain.accuracy(plain.wanted)}}
    results |= {name: measure(plain, recipe) for name, recipe in RECIPES.items()}
    results["network of signs, float32"] = {"accuracy": signs.accuracy(signs.wanted)}
    results["XNOR (W1A1), first and last layer W8A8"] = measure(signs, XNOR)
    report = conditions(options.threads) | {"pictures": len(plain.labels), "results": results}
    print_table(COLUMNS, rows(report))
    write_json(options.output / "digits.json", report)


if __name__ == "__main__":
    main()
