"""Copies of channels: the function stays, steps are divided by Hermite's identity, and only what hurts gets any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kvant
from kvant.capture import Executor, capture, prepare
from kvant.quantization import decide, split
from kvant.quantization.decide import Start
from kvant.quantization.progress import Progress
from kvant.quantization.simulate import Plan, Simulation
from kvant.quantization.statistics import collect
from kvant.runtime import count_macs

pytestmark = pytest.mark.usefixtures("one_thread")


class Chain(nn.Module):
    """A dense layer, a depthwise one and ReLU: what each writes is read by dense layers, the last one by two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.third = nn.Conv2d(12, 10, 1, bias=False)
        self.heads = nn.ModuleList([nn.Conv2d(10, 4, 3), nn.Conv2d(10, 5, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        y = torch.relu(self.third(self.depthwise(y)))
        return tuple(head(y) for head in self.heads)


def start_of(module: nn.Module, size: int = 12, **wishes: object) -> Start:
    torch.manual_seed(0)
    samples = [[torch.randn(1, 3, size, size)] for _ in range(8)]
    graph = prepare(capture(module.eval(), tuple(samples[0]), {}))
    seen = collect(graph, samples, "histogram", 8, Progress(False))
    recipe = kvant.Recipe(target_sqnr=None, effort="best", **wishes)  # type: ignore[arg-type]
    return Start(graph, {}, seen, recipe, Progress(False))


def in_8_bits(start: Start) -> Plan:
    return replace(start.plan, types=start.narrow)


def some_splittable(plan: Plan) -> list[str]:
    """Names of tensors that get copies if everything may."""
    return list(split.choose_copies(plan, dict.fromkeys(plan.types, 1.0), share=100.0))


@pytest.fixture(scope="module")
def chain() -> Start:
    torch.manual_seed(1)
    return start_of(Chain())


@pytest.mark.parametrize("count", [2, 4])
def test_the_function_stays_the_same(chain: Start, count: int) -> None:
    plan = in_8_bits(chain)
    names = some_splittable(plan)
    assert len(names) == 3
    parted = split.split(plan, dict.fromkeys(names, count))
    x = torch.randn(1, 3, 9, 14, generator=torch.Generator().manual_seed(2))
    for before, after in zip(Executor(plan.graph).run([x]), Executor(parted.graph).run([x]), strict=True):
        # ReLU makes less than an eighth of a step of it.
        torch.testing.assert_close(after, before, rtol=0, atol=0.01 * float(before.abs().max()))


@pytest.mark.parametrize("count", [2, 4])
def test_copies_divide_the_steps(count: int) -> None:
    """One channel that is read with weight 1: what comes out are multiples of a part of the step, the nearest ones."""
    module = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    start = start_of(module, equalize=False)
    plan = in_8_bits(start)
    [name] = some_splittable(plan)
    quantization = plan.types[name].quantization
    assert quantization is not None
    step = quantization.scale[0]
    parted = split.split(plan, {name: count})
    simulation = Simulation(parted)
    seen: dict[str, Tensor] = {}
    simulation.executor.run(
        [torch.randn(1, 3, 20, 20)],
        lambda key, values: seen.setdefault(key, values) if key == name else None,
    )
    got = seen[name].double().numpy()
    # The first layer's output less the first copy's offset is the value; NumPy rounds it.
    open_ = got[:, :1] - (1 - count) / (2 * count) * step
    inside = (open_ > step) & (open_ < 250 * step)
    mean = np.mean(np.clip(np.rint(got / step), 0, 255), axis=1, keepdims=True) * step
    wanted = np.rint(open_ * count / step) * step / count
    np.testing.assert_allclose(mean[inside], wanted[inside], rtol=0, atol=1e-4 * step)
    assert inside.sum() > 50


def test_a_quarter_of_the_noise_is_left(chain: Start) -> None:
    plan = in_8_bits(chain)
    x = [torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(3))]

    def noise(some: Plan, only: str) -> float:
        """At the outputs, where nothing but ``only`` is rounded."""
        simulation = Simulation(some)
        simulation.rounded = {each for each in simulation.rounded if each.split(".copy")[0] == only}
        pairs = zip(simulation.executor.run(x), simulation.run(x), strict=True)
        return sum(float((one - other).square().mean()) for one, other in pairs)

    for name in some_splittable(plan):
        assert noise(plan, name) > 0
        for count in (2, 4):
            parted = split.split(plan, {name: count})
            assert noise(parted, name) == pytest.approx(noise(plan, name) / count**2, rel=0.25)


def test_who_gets_copies(chain: Start) -> None:
    plan = in_8_bits(chain)
    names = some_splittable(plan)
    made = {node.output for node in plan.graph.nodes}
    # Outputs, what a depthwise layer reads, and the input stay.
    reads = {node.inputs[0] for node in plan.graph.nodes if getattr(node.op, "groups", 1) > 1}
    assert set(names) == made - set(plan.graph.outputs) - reads
    assert split.choose_copies(plan, {}) == {}
    assert split.choose_copies(chain.plan, dict.fromkeys(names, 1.0), share=100.0) == {}  # 16 bits are fine enough
    worst = names[1]
    alone = split.choose_copies(plan, {name: 1.0 if name == worst else 1e-6 for name in names}, share=0.5)
    assert alone[worst] >= 2


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6, 3.0])
def test_copies_add_no_more_multiplications_than_they_may(chain: Start, share: float) -> None:
    plan = in_8_bits(chain)
    copies = split.choose_copies(plan, dict.fromkeys(plan.types, 1.0), share)
    parted = split.split(plan, copies)
    before, after = (sum(each.count for each in count_macs(each_plan.graph)) for each_plan in (plan, parted))
    assert after <= (1 + share) * before
    assert bool(copies) == (after > before)
    assert copies or share < 0.2


@pytest.mark.parametrize(
    "scheme",
    [kvant.WeightScheme(4), kvant.WeightScheme(granularity="tensor"), kvant.WeightScheme(form="power_of_two")],
    ids=["bits", "tensor", "power"],
)
def test_weights_of_other_schemes_are_left_alone(scheme: kvant.WeightScheme) -> None:
    assert some_splittable(in_8_bits(start_of(Chain(), weights=scheme))) == []
    assert some_splittable(in_8_bits(start_of(Chain(), activations=kvant.ActivationScheme(4)))) == []


class Cancelling(nn.Sequential):
    """Outputs are small differences of large values, of which 8 bits leave little."""

    def __init__(self) -> None:
        torch.manual_seed(4)
        first, head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 3, 1)
        first.weight.data += 20 * first.weight.data[:1]
        head.weight.data -= head.weight.data.mean(1, keepdim=True)
        super().__init__(first, head)


def test_best_effort_in_8_bits_takes_copies_where_there_is_much_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kvant.quantization.tune.LEAST_STEPS", 10**9)  # nothing is tuned
    net, pictures = Cancelling().eval(), list(torch.randn(40, 3, 16, 16).split(1))
    noise, made = {}, {}
    for share in (0.0, 3.0):
        monkeypatch.setattr(split.choose_copies, "__defaults__", (share,))
        recipe = kvant.Recipe(effort="best", target_sqnr=None)
        made[share] = kvant.quantize(net, pictures[0], calibration=pictures[:32], recipe=recipe)
        noise[share] = sum(_noise(net, made[share], x) for x in pictures[32:])
    assert noise[3.0] < 0.3 * noise[0.0]
    [noted] = [each for each in made[3.0].decisions if each.step == "copies of channels"]
    assert noted.taken and not [each for each in made[0.0].decisions if each.step == "copies of channels"]
    assert all(each.dtypes == ("uint8", "int8") for each in made[3.0].macs())
    made[3.0].save(tmp_path / "copies.kvant")
    x = pictures[35].numpy()
    for backend in ("native", "reference"):
        np.testing.assert_array_equal(kvant.load(tmp_path / "copies.kvant", backend=backend)(x), made[3.0](x))


def test_where_there_is_little_noise_nothing_gets_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvant.quantization.tune.LEAST_STEPS", 10**9)
    net, pictures = Chain().eval(), list(torch.randn(40, 3, 16, 16).split(1))
    quantized = kvant.quantize(
        net, pictures[0], calibration=pictures, recipe=kvant.Recipe(effort="best", target_sqnr=None)
    )
    assert not [each for each in quantized.decisions if each.step == "copies of channels"]
    assert quantized.decisions[-1].after > decide.ENOUGH_DB


def _noise(net: nn.Module, quantized: kvant.QuantizedModel, x: Tensor) -> float:
    with torch.no_grad():
        wanted = net(x)
    return float((wanted - quantized(x)).square().sum() / wanted.square().sum())
