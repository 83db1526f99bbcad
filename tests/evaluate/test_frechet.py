"""Frechet distance against scipy's matrix square root and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from stack.evaluate.frechet import Moments, frechet_distance


def moments(features: np.ndarray) -> Moments:
    return Moments(features.shape[1]).update(torch.from_numpy(features))


def scipy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as FID implementations write it."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(cov_a + cov_b - 2 * root))


def cloud(n: int, dim: int, seed: int, decay: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dim, dim)) * np.geomspace(1, decay, dim)[:, None]
    return rng.normal(size=(n, dim)) @ mixing + rng.normal(size=dim)


@pytest.mark.parametrize("dim", [2, 16, 64])
@pytest.mark.parametrize("decay", [1.0, 1e-2])
def test_agrees_with_scipy_on_well_conditioned_features(dim: int, decay: float) -> None:
    a, b = cloud(2000, dim, 0, decay), cloud(1500, dim, 1, decay)
    expected = scipy_distance(a, b)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "dim"), [(30, 64), (50, 200)])
def test_agrees_with_scipy_with_fewer_samples_than_dimensions(n: int, dim: int) -> None:
    a, b = cloud(n, dim, 0), cloud(n, dim, 1)
    expected = scipy_distance(a, b)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_features_in_a_subspace_have_the_subspaces_distance(rank: int) -> None:
    a, b = cloud(500, rank, 0), cloud(400, rank, 1)
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(32, rank)))[0].T
    inside = frechet_distance(moments(a @ basis), moments(b @ basis))
    assert inside == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-9)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (2.0, 1.0), (0.0, 3.0), (1.5, 0.25)])
def test_one_dimensional_closed_form(shift: float, scale: float) -> None:
    a = np.random.default_rng(0).normal(size=(1000, 1))
    expected = (a.mean() * (1 - scale) - shift) ** 2 + a.var(ddof=1) * (1 - scale) ** 2
    found = frechet_distance(moments(a), moments(a * scale + shift))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_equal_sets_are_at_no_distance_and_order_does_not_matter() -> None:
    a, b = moments(cloud(300, 20, 0)), moments(cloud(300, 20, 1))
    assert 0 <= frechet_distance(a, a) < 1e-9
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


@pytest.mark.parametrize("sizes", [[500], [1, 499], [250, 250], [0, 3, 7, 490], [1] * 500])
@pytest.mark.parametrize("merged", [False, True])
def test_streaming_equals_all_at_once(sizes: list[int], merged: bool) -> None:
    features = torch.from_numpy(cloud(500, 8, 3)) + 1e4
    running = Moments(8)
    for part in features.split(sizes):
        if merged:
            running.merge(Moments(8).update(part))
        else:
            running.update(part.float().double())
    expected = features if merged else features.float().double()
    mean, covariance = running.finalize()
    torch.testing.assert_close(mean, expected.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(covariance, torch.cov(expected.T), rtol=1e-9, atol=1e-9)


def test_float32_features_are_summed_in_float64() -> None:
    features = torch.full((10, 1), 1 + 2**-20)
    assert Moments(1).update(features).mean.item() == 1 + 2**-20


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_are_refused(count: int) -> None:
    few = Moments(4).update(torch.zeros(count, 4))
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance(few, moments(cloud(10, 4, 0)))


def test_a_wider_cloud_is_further_away() -> None:
    base = cloud(400, 6, 0)
    near, far = (frechet_distance(moments(base), moments(base * s)) for s in (1.1, 1.5))
    assert near < far
    assert math.isfinite(far)
