"""Two-stage normalisation: levels of noise, unit mean, layouts, warmup."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stack.diffusion.schedule import DiscreteSchedule
from stack.diffusion.timesteps import UniformTimes
from stack.fdistill.divergence import DIVERGENCES
from stack.fdistill.ratio import (
    RatioNormalizer,
    RatioWeight,
    density_ratio,
    identity,
    log_density_ratio,
    unit_mean,
)

SCHEDULE = DiscreteSchedule.scaled_linear()
TIMES = UniformTimes(20, 980)


def normalizer(bins: int = 10, **options: float) -> RatioNormalizer:
    return RatioNormalizer(TIMES.log_snr_edges(SCHEDULE, bins), **options)


def biased_ratios(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log ratios whose mean depends on the noise level, and log-SNR of n sampled times."""
    t = TIMES.draw(seed=seed, iteration=0, role="t", positions=torch.arange(n))
    log_snr = SCHEDULE.log_snr(t)
    noise = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return 0.3 * log_snr + 0.5 * noise, log_snr


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (4,)])
def test_log_ratio_is_the_clipped_mean_over_heads(shape: tuple[int, ...]) -> None:
    logits = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    mean = logits.reshape(4, -1).mean(1)
    torch.testing.assert_close(log_density_ratio(logits), mean)
    torch.testing.assert_close(density_ratio(logits), mean.exp())


def test_both_clips() -> None:
    logits = torch.tensor([-3e38, -30.0, 0.0, 30.0, 3e38])[:, None]
    r = density_ratio(logits, logit_clamp=10, r_min=0.1, r_max=20)
    torch.testing.assert_close(r, torch.tensor([0.1, 0.1, 1.0, 20.0, 20.0]))
    wide = density_ratio(logits, logit_clamp=2, r_min=1e-3, r_max=1e3)
    torch.testing.assert_close(wide, torch.tensor([-2.0, -2.0, 0.0, 2.0, 2.0]).exp())


def test_ratio_of_bf16_logits_is_float32() -> None:
    assert density_ratio(torch.randn(4, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("bins", [1, 2, 7, 10])
def test_every_bin_holds_an_equal_share_of_the_sampled_times(bins: int) -> None:
    edges = TIMES.log_snr_edges(SCHEDULE, bins)
    t = TIMES.draw(seed=0, iteration=0, role="t", positions=torch.arange(20000))
    bin_of = RatioNormalizer(edges)
    bin_of.update(torch.ones(20000), SCHEDULE.log_snr(t))
    shares = bin_of.counts / bin_of.counts.sum()
    assert len(shares) == bins
    assert (shares * bins - 1).abs().max() < 0.1


def test_mean_ratio_of_every_level_becomes_one() -> None:
    log_r, log_snr = biased_ratios(40000)
    bins = normalizer()
    bins.update(log_r.exp(), log_snr)
    r = bins.normalize_log(log_r, log_snr).exp()
    level = torch.bucketize(log_snr, bins.edges)
    for i in range(10):
        assert r[level == i].mean().item() == pytest.approx(1, abs=0.02)
        assert abs(log_r[level == i].exp().mean().item() - 1) > 0.05  # it was not one before


def test_a_lone_sample_keeps_its_ratio() -> None:
    bins = normalizer()
    log_r, log_snr = torch.tensor([math.log(8.0)]), torch.tensor([0.0])
    bins.update(log_r.exp(), log_snr)
    assert bins.normalize_log(log_r, log_snr).exp().item() > 4
    bare = normalizer(prior=0.0)
    bare.update(log_r.exp(), log_snr)
    assert bare.normalize_log(log_r, log_snr).exp().item() == pytest.approx(1)


def test_without_prior_empty_levels_divide_by_one() -> None:
    bins = normalizer(prior=0.0)
    assert torch.equal(bins.means(), torch.ones(10, dtype=torch.float64))
    bins.update(torch.tensor([2.0]), torch.tensor([0.0]))
    assert bins.means().isfinite().all()
    assert sorted(bins.means().tolist())[-1] == 2.0


def test_state_is_float64_and_moved_by_update_alone() -> None:
    bins = normalizer()
    log_r, log_snr = biased_ratios(64)
    bins.update(log_r.exp().bfloat16(), log_snr)
    before = {name: value.clone() for name, value in bins.state_dict().items()}
    assert {value.dtype for value in before.values()} == {torch.float64}
    bins.normalize_log(log_r, log_snr)
    bins.means()
    assert all(torch.equal(before[name], value) for name, value in bins.state_dict().items())


def test_state_round_trip() -> None:
    log_r, log_snr = biased_ratios(64)
    one, other = normalizer(), normalizer()
    one.update(log_r.exp(), log_snr)
    other.load_state_dict(one.state_dict())
    one.update(log_r.exp(), log_snr)  # the copy is not a view
    other.update(log_r.exp(), log_snr)
    assert torch.equal(one.means(), other.means())


def test_memory_decays() -> None:
    bins = normalizer(bins=1, decay=0.5, prior=0.0)
    level = torch.zeros(4)
    for r in (1.0, 3.0):
        bins.update(torch.full((4,), r), level)
    assert bins.means().item() == pytest.approx((0.5 * 1 + 3) / 1.5)


class UnknownMeanError(Exception):
    """A rank waits for a mean that is not known yet."""


def answering(answers: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """An all-reduce that knows the first few means and stops the rank at the next."""
    known = iter(answers)

    def mean(value: Tensor) -> Tensor:
        for answer in known:
            return answer
        raise UnknownMeanError(value)

    return mean


def side_by_side(ranks: list[RatioWeight], parts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Every rank's h: all run until they ask for a mean, and again with it, until none asks."""
    answers: list[Tensor] = []
    states = [rank.normalizer.state_dict() for rank in ranks]
    while True:
        done, asked = [], []
        for rank, state, (log_r, log_snr) in zip(ranks, states, parts, strict=True):
            rank.normalizer.load_state_dict(state)
            try:
                mean = answering(answers)
                done.append(rank(log_r, log_snr, 0, global_batch=64, all_reduce_mean=mean))
            except UnknownMeanError as question:
                asked.append(question.args[0])
        if not asked:
            return done
        answers.append(torch.stack(asked).mean(0))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_four_ranks_weigh_as_one(name: str) -> None:
    log_r, log_snr = biased_ratios(64)
    whole = RatioWeight(DIVERGENCES[name], normalizer(bins=4))
    ranks = [RatioWeight(DIVERGENCES[name], normalizer(bins=4)) for _ in range(4)]
    for _ in range(3):
        h = whole(log_r, log_snr, 0, global_batch=64)
        parts = list(zip(log_r.chunk(4), log_snr.chunk(4), strict=True))
        torch.testing.assert_close(torch.cat(side_by_side(ranks, parts)), h)
    for rank in ranks:
        torch.testing.assert_close(rank.normalizer.sums, whole.normalizer.sums)
        torch.testing.assert_close(rank.normalizer.counts, whole.normalizer.counts)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_has_unit_mean_over_the_global_batch(name: str) -> None:
    log_r, log_snr = biased_ratios(64)
    weight = RatioWeight(DIVERGENCES[name], normalizer())
    assert weight(log_r, log_snr, 0).mean().item() == pytest.approx(1, abs=1e-6)
    h = DIVERGENCES[name].h_from_log(log_r)
    torch.testing.assert_close(unit_mean(h), h / h.mean())
    torch.testing.assert_close(unit_mean(h, lambda mean: mean * 2), h / h.mean() / 2)
    assert identity(h) is h


@pytest.mark.parametrize("normalize_r", [True, False])
@pytest.mark.parametrize("normalize_h", [True, False])
def test_each_normalisation_can_be_switched_off(normalize_r: bool, normalize_h: bool) -> None:
    log_r, log_snr = biased_ratios(64)
    row, bins = DIVERGENCES["forward_kl"], normalizer()
    weight = RatioWeight(row, bins, normalize_r=normalize_r, normalize_h=normalize_h)
    h = weight(log_r, log_snr, 0)
    expected = row.h_from_log(bins.normalize_log(log_r, log_snr) if normalize_r else log_r)
    torch.testing.assert_close(h, unit_mean(expected) if normalize_h else expected)
    assert bool(bins.counts.any()) == normalize_r


@pytest.mark.parametrize(
    ("warmup", "ramp", "trust"),
    [(0, 0, [1, 1, 1, 1, 1]), (2, 0, [0, 0, 1, 1, 1]), (1, 3, [0, 0.25, 0.5, 0.75, 1])],
)
def test_warmup_and_ramp(warmup: int, ramp: int, trust: list[float]) -> None:
    log_r, log_snr = biased_ratios(32)
    for iteration, share in enumerate(trust):
        full = RatioWeight(DIVERGENCES["jeffreys"], normalizer())(log_r, log_snr, iteration)
        weight = RatioWeight(DIVERGENCES["jeffreys"], normalizer(), warmup=warmup, ramp=ramp)
        h = weight(log_r, log_snr, iteration)
        torch.testing.assert_close(h, 1 + share * (full - 1))
        assert weight.normalizer.counts.any()  # statistics are gathered from the start
