"""Clips, divergences and k-means against the papers' numbers, brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from kvant.quantization.clipping import aciq_clip, kl_divergence, kmeans, laplace_clip, normal_clip

rng = np.random.default_rng(0)


@pytest.mark.parametrize(("bits", "laplace", "normal"), [(2, 2.83, 1.71), (3, 3.89, 2.15), (4, 5.03, 2.55)])
def test_aciq_has_the_papers_clips(bits: int, laplace: float, normal: float) -> None:
    assert laplace_clip(bits) == pytest.approx(laplace, abs=0.01)
    assert normal_clip(bits) == pytest.approx(normal, abs=0.01)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("name", ["laplace", "normal"])
def test_aciq_is_near_the_best_clip_of_a_sample(name: str, one_sided: bool) -> None:
    values = getattr(rng, name)(size=200_000)
    values = np.maximum(values, 0) if one_sided else values
    # The statistics are those of the distribution before ReLU.
    magnitude, deviation = (1.0, 2**0.5) if name == "laplace" else ((2 / np.pi) ** 0.5, 1.0)
    clip = float(aciq_clip(magnitude, deviation, 3, one_sided=one_sided))

    def error(limit: float) -> float:
        low, step = (0.0, limit / 8) if one_sided else (-limit, limit / 4)
        inside = np.clip(values, low, limit)
        rounded = np.minimum(np.floor((inside - low) / step), 7) * step + low + step / 2  # midpoints, as in the paper
        rounded = np.where(values == 0, 0.0, rounded) if one_sided else rounded
        return float(((rounded - values) ** 2).mean())

    best = min(error(limit) for limit in np.linspace(0.5, 9, 171))
    assert error(clip) < 1.05 * best


def test_divergence_of_what_loses_nothing_is_zero() -> None:
    counts = rng.integers(0, 9, (3, 64)).astype(float)
    assert kl_divergence(counts, 64, 64) == pytest.approx(np.zeros(3), abs=1e-12)
    flat = np.ones((1, 64))
    assert kl_divergence(flat, 64, 8) == pytest.approx(np.zeros(1), abs=1e-12)


def test_divergence_follows_its_definition() -> None:
    counts = np.array([[4.0, 0, 2, 2, 1, 3, 0, 1]])
    # 6 bins are kept, 1 is clipped into the last; 3 levels of 2 bins.
    p = np.array([4.0, 0, 2, 2, 1, 4])
    q = np.array([4.0, 0, 2, 2, 2, 2])
    p, q = p / p.sum(), q / q.sum()
    wanted = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert kl_divergence(counts, 6, 3) == pytest.approx([wanted])


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_kmeans_is_no_worse_than_scikit_learn(count: int) -> None:
    values = np.sort(rng.standard_t(3, size=300))
    weights = rng.random(300) + 0.1
    centres = kmeans(values, weights, count)
    peer = KMeans(count, n_init=20, random_state=0).fit(values[:, None], sample_weight=weights)

    def inertia(found: np.ndarray) -> float:
        return float((weights * np.abs(values[:, None] - found[None]).min(axis=1) ** 2).sum())

    assert (np.diff(centres) > 0).all() and len(centres) == count
    assert inertia(centres) <= inertia(peer.cluster_centers_[:, 0]) * (1 + 1e-9)


def test_kmeans_of_few_values_is_these_values() -> None:
    assert kmeans(np.array([-1.0, 0.0, 5.0]), np.ones(3), 16).tolist() == [-1.0, 0.0, 5.0]
