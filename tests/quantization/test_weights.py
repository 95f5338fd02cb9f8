"""Integer weights and biases: bounds, error against brute force, and biases that do not fit."""

import numpy as np
import pytest

from kvant.errors import AccumulatorOverflowError
from kvant.graph import Quantization, TensorType
from kvant.quantization import WeightScheme
from kvant.quantization.weights import (
    QuantizedWeight,
    fine_weight,
    fit_bias,
    fit_sums,
    network_scales,
    quantize_bias,
    quantize_weight,
)
from kvant.runtime.arithmetic import INT32_MAX, accumulator_bound

rng = np.random.default_rng(0)


def test_min_max_error_is_at_most_half_a_step() -> None:
    weight = rng.normal(size=(8, 16, 3, 3)).astype(np.float32)
    quantized = quantize_weight(weight, None, WeightScheme(range="minmax"))
    assert np.abs(quantized.values.astype(int)).max() == 127
    step = quantized.scale.reshape(-1, 1, 1, 1)
    assert (np.abs(quantized.dequantize() - weight) <= 0.5001 * step).all()


def test_the_search_never_loses_to_min_max_under_its_own_measure() -> None:
    weight = rng.standard_t(2, size=(32, 64, 1, 1)).astype(np.float32)
    moment = (rng.random((1, 64, 1, 1)) ** 4).astype(np.float32)
    loss = {
        method: ((quantize_weight(weight, moment, WeightScheme(range=method)).dequantize() - weight) ** 2 * moment).sum(
            (1, 2, 3)
        )
        for method in ("mse", "minmax")
    }
    assert (loss["mse"] <= loss["minmax"] * 1.0001).all()
    assert loss["mse"].sum() < 0.98 * loss["minmax"].sum()


def test_a_dead_channel_is_zero_with_a_sound_scale() -> None:
    weight = np.zeros((2, 3), np.float32)
    weight[0] = (1.0, -2.0, 0.5)
    quantized = quantize_weight(weight, None, WeightScheme())
    assert not quantized.values[1].any() and quantized.scale[1] == 1.0


def test_a_bias_that_dwarfs_its_weights_coarsens_the_scale() -> None:
    weight = np.full((2, 4), 1e-9, np.float32)
    bias = np.array([5.0, 0.0], np.float32)
    quantized = quantize_weight(weight, None, WeightScheme(range="minmax"))
    with pytest.raises(AccumulatorOverflowError):
        quantize_bias(bias, 1e-3, quantized.scale, "uint8")
    fitted = fit_bias(weight, quantized, bias, 1e-3)
    values = quantize_bias(bias, 1e-3, fitted.scale, "uint8")
    assert values[0] * 1e-3 * fitted.scale[0] == pytest.approx(5.0, rel=1e-6)
    assert fitted.scale[1] == quantized.scale[1]


SHORTS, BYTES = TensorType("int16", Quantization((0.01,))), TensorType("uint8", Quantization((0.01,), 3))


def bound(weight: QuantizedWeight, bias: np.ndarray, source: TensorType) -> int:
    values = quantize_bias(bias, 0.01, weight.scale, source.dtype)
    return accumulator_bound(source, weight.values, values.astype(np.int64))


@pytest.mark.parametrize(("channels", "bias"), [(32, 0.0), (16, 50.0), (40, -3.0), (160, 1.0)])
def test_fine_weights_lose_no_more_than_sums_within_int32_need(channels: int, bias: float) -> None:
    weight = np.random.default_rng(1).normal(size=(5, channels, 1, 1)).astype(np.float32)
    weight[0] *= np.arange(channels).reshape(-1, 1, 1) == 0  # needs nothing
    biases, quantized = np.full(5, bias, np.float32), fine_weight(weight)
    before = bound(quantized, biases, SHORTS)
    fitted = fit_sums(weight, quantized, biases, SHORTS)
    after = bound(fitted, biases, SHORTS)
    assert 0.49 * INT32_MAX < after <= INT32_MAX < before
    assert fitted.scale[0] == quantized.scale[0]
    assert set(fitted.scale / quantized.scale) <= {1, 2, 4, 8}
    step = fitted.scale.reshape(-1, 1, 1, 1)
    assert (np.abs(fitted.dequantize() - weight) <= 0.501 * step).all()  # halves, and float32


def test_fine_weights_stay_where_fitting_would_cost_too_much_or_is_not_needed() -> None:
    own = np.random.default_rng(1)
    many, few = (own.normal(size=(5, channels, 3, 3)).astype(np.float32) for channels in (400, 2))
    for weight, source in ((many, SHORTS), (few, BYTES), (few[:, :1, :1], SHORTS)):
        quantized = fine_weight(weight)
        assert fit_sums(weight, quantized, None, source) is quantized
    asked = quantize_weight(few, None, WeightScheme(16))
    assert fit_sums(few, asked, None, SHORTS) is asked


def test_bias_is_rounded_half_to_even() -> None:
    values = quantize_bias(np.array([0.5, 1.5, -2.5], np.float32), 1.0, np.ones(3, np.float32), "uint8")
    np.testing.assert_array_equal(values, [0, 2, -2])


def heavy(shape: tuple[int, ...]) -> np.ndarray:
    """Weights whose channels and groups differ in size, with tails."""
    sizes = rng.lognormal(0, 1, (shape[0], 1)) * np.repeat(rng.lognormal(0, 0.7, (1, shape[1] // 8)), 8, axis=1)
    return (rng.standard_t(4, size=shape) * sizes[..., *[None] * (len(shape) - 2)]).astype(np.float32)


def error(weight: np.ndarray, scheme: WeightScheme) -> float:
    return float(((quantize_weight(weight, None, scheme).dequantize() - weight) ** 2).mean())


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_finer_granularity_errs_less(bits: int) -> None:
    weight = heavy((32, 64))
    errors = [error(weight, WeightScheme(bits, granularity=each)) for each in ("tensor", "channel")]
    errors.append(error(weight, WeightScheme(bits, granularity="group", group=8)))
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.85 * errors[1]


@pytest.mark.parametrize("form", ["symmetric", "asymmetric", "power_of_two", "log2", "apot", "codebook"])
def test_every_form_errs_less_with_more_bits(form: str) -> None:
    weight = rng.normal(size=(16, 256)).astype(np.float32)
    errors = [error(weight, WeightScheme(bits, form)) for bits in (2, 3, 4)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.2 * errors[2]


def test_uneven_levels_fit_what_is_not_evenly_used() -> None:
    weight = rng.standard_t(3, size=(16, 512)).astype(np.float32)
    by_form = {form: error(weight, WeightScheme(4, form)) for form in ("symmetric", "codebook", "apot")}
    assert by_form["codebook"] < by_form["apot"] < by_form["symmetric"]


def test_single_bits_are_signs_times_the_mean_magnitude() -> None:
    weight = rng.normal(size=(8, 100)).astype(np.float32)
    quantized = quantize_weight(weight, None, WeightScheme(1))
    np.testing.assert_array_equal(quantized.values, np.where(weight > 0, 1, -1))
    np.testing.assert_allclose(quantized.scale, np.abs(weight).mean(axis=1), rtol=1e-5)


def test_a_moment_moves_the_scale_of_single_bits() -> None:
    weight, moment = rng.normal(size=(8, 100)).astype(np.float32), rng.random((1, 100)).astype(np.float32)
    scale = quantize_weight(weight, moment, WeightScheme(1)).scale
    np.testing.assert_allclose(scale, (np.abs(weight) * moment).sum(1) / moment.sum(), rtol=1e-4)


def test_asymmetric_weights_use_every_integer_and_keep_zero() -> None:
    weight = rng.uniform(-0.2, 1.0, size=(4, 2000)).astype(np.float32)
    weight[:, 0] = 0
    quantized = quantize_weight(weight, None, WeightScheme(4, "asymmetric", range="minmax"))
    assert all(len(np.unique(row)) == 16 for row in quantized.values)
    assert not quantized.values[:, 0].any()
    assert error(weight, WeightScheme(4, "asymmetric")) < 0.5 * error(weight, WeightScheme(4))
    wide = quantize_weight(weight, None, WeightScheme(8, "asymmetric"))
    assert wide.values.dtype == np.int16 and np.ptp(wide.values, axis=1).max() <= 255


@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_rounding_follows_its_name(bits: int) -> None:
    """Integers and a half, at scale 1: NumPy says what each mode does."""
    top = 2 ** (bits - 1) - 1
    weight = np.array([[top, -top, 0.5, -0.5, 0.25, -0.75, 0.0, 0.6]], np.float32)
    wanted = {
        "half_even": np.rint(weight), "half_away": np.trunc(weight + np.copysign(0.5, weight)),
        "floor": np.floor(weight), "ceil": np.ceil(weight),
    }  # fmt: skip
    for rounding, values in wanted.items():
        quantized = quantize_weight(weight, None, WeightScheme(bits, range="minmax", rounding=rounding))
        assert quantized.scale == [1.0]
        np.testing.assert_array_equal(quantized.values, np.clip(values, -top, top), err_msg=rounding)


def test_uneven_levels_are_rounded_by_the_same_names() -> None:
    weight = np.array([[4, -4, 3, -3, 1.5, -1.5, 3.2, 0.0]], np.float32)
    wanted = {
        "half_even": [4, -4, 4, -4, 1, -1, 4, 0],  # of two equally near levels the one at an even place
        "half_away": [4, -4, 4, -4, 2, -2, 4, 0],
        "floor": [4, -4, 2, -4, 1, -2, 2, 0],
        "ceil": [4, -4, 4, -2, 2, -1, 4, 0],
    }
    for rounding, values in wanted.items():
        quantized = quantize_weight(weight, None, WeightScheme(3, "log2", range="minmax", rounding=rounding))
        assert quantized.values.tolist() == [values], rounding


def test_stochastic_rounding_is_right_on_average() -> None:
    weight = np.full((1, 100_000), 0.3, np.float32)
    weight[0, 0] = 1.0
    scheme = WeightScheme(2, range="minmax", rounding="stochastic")
    values = quantize_weight(weight, None, scheme).values[0, 1:]
    assert set(np.unique(values)) == {0, 1}
    assert values.mean() == pytest.approx(0.3, abs=0.01)
    again = quantize_weight(weight, None, scheme, name="another layer").values[0, 1:]
    assert not np.array_equal(values, again)


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "kl", "aciq", "cosine"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_every_range_method_keeps_the_weight(method: str, bits: int) -> None:
    weight = rng.laplace(size=(16, 1024)).astype(np.float32)
    for granularity in ("channel", "tensor", "network"):
        scheme = WeightScheme(bits, range=method, granularity=granularity, percentile=99.0)
        assert error(weight, scheme) < {8: 0.02, 4: 0.35, 2: 1.9}[bits], granularity


def test_range_methods_do_what_they_say() -> None:
    weight = rng.laplace(size=(4, 4096)).astype(np.float32)
    reach = {method: quantize_weight(weight, None, WeightScheme(4, range=method, percentile=99.0)) for method in (
        "minmax", "percentile", "aciq", "mse", "cosine"
    )}  # fmt: skip
    clip = {method: found.scale * 7 for method, found in reach.items()}
    np.testing.assert_allclose(clip["minmax"], np.abs(weight).max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(clip["percentile"], np.percentile(np.abs(weight), 99, axis=1), rtol=0.05)
    np.testing.assert_allclose(clip["aciq"], 5.03 * np.abs(weight).mean(axis=1), rtol=0.01)
    errors = {method: ((found.dequantize() - weight) ** 2).sum() for method, found in reach.items()}
    assert errors["mse"] == min(errors.values())

    def cosine(found: QuantizedWeight) -> float:
        real = found.dequantize()
        return float((real * weight).sum() / np.sqrt((real**2).sum() * (weight**2).sum()))

    assert cosine(reach["cosine"]) >= max(cosine(reach["minmax"]), cosine(reach["aciq"]))


def test_groups_are_integer_multiples_of_one_scale() -> None:
    weight = heavy((8, 32, 3, 3))
    quantized = quantize_weight(weight, None, WeightScheme(4, granularity="group", group=8))
    assert quantized.values.dtype == np.int8 and quantized.quantization().group == 72
    for row in quantized.values.reshape(8, 4, 72):
        for run in row:
            factor = max(int(np.gcd.reduce(np.abs(run.astype(int)))), 1)
            assert np.abs(run // factor).max() <= 7


def test_a_group_that_does_not_divide_the_channels_ends_early() -> None:
    weight = rng.normal(size=(4, 10)).astype(np.float32)
    quantized = quantize_weight(weight, None, WeightScheme(2, granularity="group", group=4))
    assert quantized.values.shape == (4, 10)
    huge = quantize_weight(weight, None, WeightScheme(2, granularity="group", group=1000))
    plain = quantize_weight(weight, None, WeightScheme(2))
    np.testing.assert_array_equal(np.sign(huge.values), np.sign(plain.values))


@pytest.mark.parametrize("form", ["symmetric", "power_of_two"])
@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "kl", "aciq", "cosine"])
def test_a_group_larger_than_a_row_is_the_row(form: str, method: str) -> None:
    """What would fill the group up is no weight: it moves no clip and no histogram."""
    weight = rng.laplace(size=(6, 20)).astype(np.float32)
    chosen = {"form": form, "range": method}
    rows = quantize_weight(weight, None, WeightScheme(4, **chosen))  # type: ignore[arg-type]
    group = quantize_weight(weight, None, WeightScheme(4, granularity="group", group=1000, **chosen))  # type: ignore[arg-type]
    # Of the row's scale the group has the nearest integer multiple of a sixteenth or finer.
    np.testing.assert_allclose(group.dequantize(), rows.dequantize(), atol=float(np.abs(weight).max()) / 16)


@pytest.mark.parametrize("method", ["mse", "percentile", "kl", "aciq", "cosine"])
def test_the_last_group_has_the_clip_of_its_own_weights(method: str) -> None:
    weight = rng.laplace(size=(4, 70)).astype(np.float32)
    scheme = WeightScheme(4, granularity="group", group=32, range=method)  # type: ignore[arg-type]
    whole, alone = (quantize_weight(each, None, scheme) for each in (weight, weight[:, 64:]))
    assert whole.grid.factors is not None and alone.grid.factors is not None
    wanted = alone.scale[:, None] * alone.grid.factors.numpy()
    found = whole.scale[:, None] * whole.grid.factors.numpy()[:, 64:]
    np.testing.assert_allclose(found, wanted, atol=float(whole.scale.max()))


def test_a_power_of_two_for_one_weight_clips_nothing() -> None:
    """Whatever the scale, one weight and its rounded self have the cosine 1."""
    weight = rng.normal(size=(4, 9)).astype(np.float32)
    scheme = WeightScheme(8, "power_of_two", granularity="group", group=1, range="cosine")
    found = quantize_weight(weight, None, scheme)
    assert (np.abs(found.dequantize() - weight) <= 0.5001 * np.abs(weight).max() * 2 / 127).all()


@pytest.mark.parametrize("granularity", ["channel", "tensor", "network"])
@pytest.mark.parametrize("bits", [16, 8])
def test_long_rows_keep_what_is_rare_and_large(granularity: str, bits: int) -> None:
    """Where a row is judged by some of its weights, the largest must be among them: clipped they cost most."""
    weight = np.random.default_rng(1).normal(0, 0.05, (3, 20_000)).astype(np.float32)
    weight[:, 17] = 2.0
    scheme = WeightScheme(bits, granularity=granularity)  # type: ignore[arg-type]
    shared = network_scales({"w": weight}, {"w": scheme}).get("w")
    found = quantize_weight(weight, None, scheme, network_scale=shared).dequantize()
    nearest = quantize_weight(weight, None, WeightScheme(bits, range="minmax")).dequantize()
    assert ((found - weight) ** 2).sum() <= 1.01 * ((nearest - weight) ** 2).sum()


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_one_asymmetric_scale_for_the_network_clips_both_sides(bits: int) -> None:
    """A network of one layer has about the scale of that layer, whose ends count twice, and errs as much."""
    weight = np.random.default_rng(1).normal(size=(8, 100)).astype(np.float32)
    tensor, network = (WeightScheme(bits, "asymmetric", granularity) for granularity in ("tensor", "network"))  # type: ignore[arg-type]
    shared = network_scales({"w": weight}, {"w": network})["w"]
    alone, together = (
        quantize_weight(weight, None, each, network_scale=scale).dequantize()
        for each, scale in ((tensor, None), (network, shared))
    )
    assert ((together - weight) ** 2).sum() <= 1.05 * ((alone - weight) ** 2).sum()


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("form", ["symmetric", "power_of_two"])
def test_groups_of_zeros_want_no_scale(bits: int, form: str) -> None:
    """Weights that were pruned group by group: the others are as exact as without them."""
    weight = (0.01 * np.random.default_rng(1).normal(size=(4, 32))).astype(np.float32)
    pruned = np.concatenate([weight, np.zeros_like(weight)], 1)
    scheme = WeightScheme(bits, form, granularity="group", group=8)  # type: ignore[arg-type]
    alone, beside = (quantize_weight(each, None, scheme).dequantize() for each in (weight, pruned))
    np.testing.assert_array_equal(beside[:, :32], alone)
    np.testing.assert_array_equal(quantize_weight(pruned * 0, None, scheme).scale, 1.0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_a_factor_does_not_clip_what_its_group_holds(bits: int, method: str) -> None:
    """Groups of a tenth of the largest have a factor of 2 to 6, where the nearest one is up to a fifth too small."""
    generator = np.random.default_rng(1)
    weight = (generator.uniform(-1, 1, (16, 8, 8)) * generator.uniform(0.02, 1, (16, 8, 1))).astype(np.float32)
    weight = weight.reshape(16, 64)
    group, row = (
        quantize_weight(weight, None, WeightScheme(bits, granularity=granularity, group=size, range=method))  # type: ignore[arg-type]
        for granularity, size in (("group", 8), ("channel", None))
    )
    errors = [((found.dequantize() - weight) ** 2).sum() for found in (group, row)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("method", ["aciq", "kl"])
def test_pruned_weights_move_no_clip(method: str) -> None:
    weight = np.random.default_rng(1).laplace(size=(4, 512)).astype(np.float32)
    pruned = np.concatenate([weight, np.zeros((4, 4608), np.float32)], 1)
    scheme = WeightScheme(4, range=method)  # type: ignore[arg-type]
    alone, beside = (quantize_weight(each, None, scheme).scale for each in (weight, pruned))
    np.testing.assert_allclose(beside, alone, rtol=1e-5)
