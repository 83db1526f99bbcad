"""Intervals: against plain resampling and differences, and whether they hold what they should as
often as told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from stack.evaluate import intervals
from stack.evaluate.frechet import Moments, frechet_distance
from stack.evaluate.intervals import (
    FEW,
    frechet_estimate,
    manifold_estimates,
    mean_estimate,
    share_estimate,
    variation_estimate,
)


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
    monkeypatch.setattr(intervals, "_ELEMENTS", 1000)
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


def weighted(features: Tensor, shares: Tensor) -> Moments:
    """Moments as if each row occurred in such a share of as many rows: float64 (N,), of sum 1."""
    found, n = Moments(features.shape[1]), len(features)
    found.count, found.mean = n, shares @ features.double()
    centred = features.double() - found.mean
    found.scatter = n * (centred.T * shares) @ centred
    return found


@pytest.mark.parametrize(("n", "dim", "rank"), [(60, 5, 5), (60, 8, 3), (20, 30, 30), (60, 8, 8)])
def test_influences_are_the_distances_differences(n: int, dim: int, rank: int) -> None:
    """By a little more weight of one sample; in a subspace, with fewer samples than dimensions, and
    with a reference in a subspace too."""
    generator = torch.Generator().manual_seed(n + dim + rank)
    basis = torch.randn(rank, dim, generator=generator, dtype=torch.float64)
    features = torch.randn(n, rank, generator=generator, dtype=torch.float64) @ basis + 5
    real = torch.randn(4 if dim == rank == 8 else 50, dim, generator=generator).double()
    linear = intervals._Linear(moments(features), moments(real))
    found = linear.influences(features)
    assert found.mean().abs() < 1e-9
    shares, step = torch.full((n,), 1 / n, dtype=torch.float64), 1e-6
    for row in range(0, n, 7):
        towards = -shares.clone()
        towards[row] += 1
        ends = [
            frechet_distance(weighted(features, shares + way * step * towards), moments(real))
            for way in (1, -1)
        ]
        wanted = (ends[0] - ends[1]) / (2 * step)
        assert found[row].item() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("n", "dim", "shift"), [(400, 6, 0.3), (1000, 10, 0.2)])
def test_a_distances_interval_is_the_bootstraps(n: int, dim: int, shift: float) -> None:
    """As wide as the spread of distances of rows drawn with repeats, which take long."""
    features, reference = cloud(n, dim, 0, shift), moments(cloud(1000, dim, 1))
    found = frechet_estimate(features, reference)
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(n, (n,), generator=generator) for _ in range(300)]
    distances = [frechet_distance(moments(features[rows]), reference) for rows in drawn]
    assert (found.high - found.value) / 1.96 == pytest.approx(np.std(distances), rel=0.15)


@pytest.mark.parametrize(("n", "dim", "shift"), [(80, 60, 0.5), (200, 60, 0.0), (60, 100, 0.3)])
def test_an_interval_of_few_samples_is_that_of_others(n: int, dim: int, shift: float) -> None:
    """With about as many samples as dimensions resampling finds several times the spread that data
    sets of this size have; the influences find it, or a little more."""
    reference = moments(cloud(1000, dim, 1))
    found = [frechet_estimate(cloud(n, dim, 50 + seed, shift), reference) for seed in range(40)]
    reach = np.mean([one.high - one.value for one in found]) / 1.96
    spread = np.std([one.value for one in found])
    assert 0.8 * spread < reach < 2 * spread


def test_the_figure_is_the_plain_distance_and_blocks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, reference = cloud(500, 6, 0), moments(cloud(400, 6, 1, shift=0.2))
    found = frechet_estimate(features, reference)
    assert found.value == pytest.approx(frechet_distance(moments(features), reference), rel=1e-12)
    assert found.low < found.value < found.high
    monkeypatch.setattr(intervals, "_ELEMENTS", 100)
    parts = frechet_estimate(features, reference)
    assert (parts.low, parts.high) == pytest.approx((found.low, found.high), rel=1e-9)
    assert parts == frechet_estimate(features, reference)


def test_pictures_of_one_prompt_count_as_one() -> None:
    """The same picture four times is no more certain than once."""
    once, reference = cloud(300, 5, 0), moments(cloud(2000, 5, 1, shift=0.2))
    alone = frechet_estimate(once, reference)
    four = frechet_estimate(once.repeat_interleave(4, 0), reference, together=4)
    assert four.high - four.value == pytest.approx(alone.high - alone.value, rel=0.02)
    real = cloud(400, 5, 2)
    alone = manifold_estimates(real, once)["precision"]
    noisy = once.repeat_interleave(4, 0) + 1e-3 * cloud(1200, 5, 3)
    four = manifold_estimates(real, noisy, together=4)["precision"]
    assert four.high - four.low == pytest.approx(alone.high - alone.low, rel=0.1)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_recalls_interval_is_of_the_generated_samples(shift: float) -> None:
    """100 generated samples tell little, however many the real ones are: the intervals hold most of
    the figures that other samples give, and are marked."""
    real = cloud(1500, 4, 99)
    found = [manifold_estimates(real, cloud(100, 4, seed, shift))["recall"] for seed in range(10)]
    values = np.array([one.value for one in found])
    held = [np.mean((one.low <= values) & (values <= one.high)) for one in found]
    assert np.mean(held) > 0.8
    assert sum(one.low <= values.mean() <= one.high for one in found) >= 9
    reach = np.mean([(one.high - one.low) / 2 for one in found])
    assert reach < 5 * 1.96 * values.std()
    assert {one.samples for one in found} == {100}


def test_few_generated_samples_are_marked_whatever_they_are_compared_with() -> None:
    found = manifold_estimates(cloud(12_000, 2, 0), cloud(100, 2, 1))
    assert {one.samples for one in found.values()} == {100}
    assert all(one.few for one in found.values())


def test_few_real_samples_are_marked_too() -> None:
    found = manifold_estimates(cloud(50, 4, 0), cloud(300, 4, 1))
    assert {one.samples for one in found.values()} == {50}
    precision = found["precision"]
    error = (precision.value * (1 - precision.value) / 300) ** 0.5
    assert precision.high - precision.low == pytest.approx(2 * 1.96 * error, rel=0.15)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_intervals_hold_the_figure_that_so_many_samples_give_on_average(shift: float) -> None:
    """The mean distance over many data sets of this size, in about 95 of 100 intervals; it is far
    from the distance of infinitely many, which the bias tells."""
    dim, n = 20, 200
    reference = moments(cloud(20_000, dim, 99))
    found = [
        frechet_estimate(cloud(n, dim, seed, shift), reference, seed=seed) for seed in range(100)
    ]
    average = float(np.mean([one.value for one in found]))
    held = sum(one.low <= average <= one.high for one in found)
    assert 86 <= held <= 100
    true = dim * shift**2
    bias = float(np.mean([one.bias or 0 for one in found]))
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
