"""Intervals: against plain resampling, and whether they hold what they should as often as told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from stack.evaluate import bootstrap
from stack.evaluate.bootstrap import (
    FEW,
    frechet_estimate,
    mean_estimate,
    share_estimate,
    variation_estimate,
)
from stack.evaluate.frechet import Moments, frechet_distance


def cloud(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(1, 0.3, dim)
    return torch.randn(n, dim, generator=generator) * scales + shift


def moments(features: Tensor) -> Moments:
    return Moments(features.shape[1]).update(features)


def test_a_means_interval_is_the_normal_one_where_that_holds() -> None:
    scores = torch.randn(2000, generator=torch.Generator().manual_seed(0)) + 3
    found = mean_estimate(scores, resamples=4000)
    error = scores.std().item() / 2000**0.5
    assert found.value == pytest.approx(scores.mean().item(), abs=1e-6)
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.1 * error)
    assert (found.samples, found.level) == (2000, 0.95)


def test_intervals_are_seeded_and_narrow_with_samples_and_level() -> None:
    scores = torch.rand(500, generator=torch.Generator().manual_seed(0))
    found = mean_estimate(scores, seed=1)
    assert found == mean_estimate(scores, seed=1)
    assert found != mean_estimate(scores, seed=2)
    wide = mean_estimate(scores[:50])
    assert wide.high - wide.low > found.high - found.low
    half = mean_estimate(scores, level=0.5)
    assert half.high - half.low < found.high - found.low


def test_blocks_do_not_change_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(300, generator=torch.Generator().manual_seed(0))
    whole = mean_estimate(scores, resamples=50)
    monkeypatch.setattr(bootstrap, "_ELEMENTS", 1000)
    parts = mean_estimate(scores, resamples=50)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_a_shares_interval_is_the_binomial_one() -> None:
    found = share_estimate(0.64, 1000)
    assert found.value == pytest.approx(0.64)
    reach = 1.96 * (0.64 * 0.36 / 1000) ** 0.5
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.1)
    assert share_estimate(1.0, 50).low == 1.0


@pytest.mark.parametrize(("samples", "few"), [(FEW - 1, True), (FEW, False)])
def test_few_samples_are_marked(samples: int, few: bool) -> None:
    found = share_estimate(0.5, samples, resamples=2)
    assert found.few == few
    told = json.loads(json.dumps(found.as_json()))
    assert told["few_samples"] == few
    assert told["samples"] == samples
    assert set(told) >= {"value", "low", "high", "level"}


@pytest.mark.parametrize("dim", [3, 40])
def test_resampled_distances_are_those_of_repeated_rows(dim: int) -> None:
    """Weights are as good as a data set in which rows occur that often; more dimensions than
    distinct rows included."""
    features, reference = cloud(30, dim, 0, shift=50.0), moments(cloud(60, dim, 1, shift=50.2))
    resampled = bootstrap._Resampled(features, features.double().mean(0), reference)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        weights = bootstrap._weights(30, generator)
        assert weights.sum() == 30
        repeated = features.repeat_interleave(weights.long(), 0)
        wanted = frechet_distance(moments(repeated), reference)
        assert resampled.distance(weights) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_the_figure_is_the_plain_distance_and_blocks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, reference = cloud(500, 6, 0), moments(cloud(400, 6, 1, shift=0.2))
    found = frechet_estimate(features, reference, resamples=10)
    assert found.value == pytest.approx(frechet_distance(moments(features), reference), rel=1e-12)
    assert found.low < found.value < found.high
    monkeypatch.setattr(bootstrap, "_ELEMENTS", 100)
    parts = frechet_estimate(features, reference, resamples=10)
    assert (parts.low, parts.high) == pytest.approx((found.low, found.high), rel=1e-9)
    assert parts == frechet_estimate(features, reference, resamples=10)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_intervals_hold_the_figure_that_so_many_samples_give_on_average(shift: float) -> None:
    """The mean distance over many data sets of this size, in about 95 of 100 intervals; it is far
    from the distance of infinitely many, which the bias tells."""
    dim, n = 20, 200
    reference = moments(cloud(20_000, dim, 99))
    found = [
        frechet_estimate(cloud(n, dim, seed, shift), reference, resamples=30, seed=seed)
        for seed in range(100)
    ]
    average = float(np.mean([one.value for one in found]))
    held = sum(one.low <= average <= one.high for one in found)
    assert 86 <= held <= 100
    true = dim * shift**2
    bias = float(np.mean([one.bias for one in found]))
    assert average - true > 0.1
    assert bias == pytest.approx(average - true, rel=0.35)


def test_nothing_to_resample() -> None:
    with pytest.raises(ValueError, match="no scores"):
        mean_estimate(torch.zeros(0))
    with pytest.raises(ValueError, match="two samples"):
        frechet_estimate(torch.zeros(1, 3), moments(cloud(10, 3, 0)))


def test_a_variations_interval_is_where_other_samples_fall() -> None:
    """2000 draws of three classes against equal shares: as wide as the spread of 300 repeats."""
    shares = torch.tensor([0.45, 0.3, 0.25], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.multinomial(shares, 2000, True, generator=generator) for _ in range(300)]
    found = [variation_estimate(row, torch.ones(3), resamples=100) for row in rows]
    values = np.array([one.value for one in found])
    reach = np.mean([(one.high - one.low) / 2 for one in found])
    assert values.mean() == pytest.approx(0.45 - 1 / 3, abs=0.003)
    assert reach == pytest.approx(1.96 * values.std(), rel=0.15)
    assert found[0] == variation_estimate(rows[0], torch.ones(3), resamples=100)
