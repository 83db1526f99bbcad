"""The ancestral sampler against a Gaussian whose law is known at every step, and diffusers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from stack.diffusion.ancestral import ancestral
from stack.diffusion.karras import KarrasSchedule
from stack.diffusion.schedule import DiscreteSchedule, Schedule
from stack.diffusion.solvers import trailing_times
from stack.util import keyed

SCHEDULE = DiscreteSchedule.scaled_linear()
MEAN, STD = 0.7, 0.5
COUNT = 40_000


def gaussian_x0(schedule: Schedule):
    """E[x0 | x_t] of x0 ~ N(MEAN, STD^2)."""

    def x0_of(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN)

    return x0_of


def noise_of(step: int) -> Tensor:
    places = torch.arange(COUNT)
    return keyed.normal((1,), seed=0, iteration=step, role="sample", positions=places)


@pytest.mark.parametrize("schedule", [SCHEDULE, KarrasSchedule(1000)], ids=["sd", "edm"])
def test_a_gaussian_is_recovered(schedule: Schedule) -> None:
    """40000 samples in 250 steps; the standard error of mean and deviation is below .003."""
    begin = schedule.prior_scale * noise_of(0)
    times = trailing_times(250, schedule.steps)
    found = ancestral(gaussian_x0(schedule), begin, schedule, times, noise_of)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, abs=0.02)


def test_the_spread_is_what_the_equations_say() -> None:
    """With few steps the variance is short of the data's, by as much as the linear recursion of
    eq. 12 gives: x_s = a x_t + b + spread z."""
    times = trailing_times(10, 1000)
    x0_of = gaussian_x0(SCHEDULE)
    variance = torch.ones((), dtype=torch.float64)
    bars = [SCHEDULE.alphas_cumprod[time] for time in times]
    for bar, below in pairwise(bars):
        gain = bar.sqrt() * STD**2 / (bar * STD**2 + 1 - bar)
        spread = (1 - below) / (1 - bar) * (1 - bar / below)
        kept = (1 - below - spread).sqrt() / (1 - bar).sqrt()
        slope = below.sqrt() * gain + kept * (1 - bar.sqrt() * gain)
        variance = slope**2 * variance + spread
    variance = (bars[-1].sqrt() * STD**2 / (bars[-1] * STD**2 + 1 - bars[-1])) ** 2 * variance
    found = ancestral(x0_of, noise_of(0), SCHEDULE, times, noise_of)
    assert found.std().item() == pytest.approx(variance.sqrt().item(), abs=0.006)
    assert abs(variance.sqrt().item() - STD) > 0.03


@pytest.mark.parametrize("count", [1, 2, 10, 50])
def test_it_is_diffusers_ddim_with_eta_1(count: int) -> None:
    stock = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="sample",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    stock.set_timesteps(count)
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(count + 1, 6, 1, generator=generator)
    x = noises[0]
    for number, t in enumerate(stock.timesteps, 1):
        x0 = gaussian_x0(SCHEDULE)(x, t.expand(6))
        x = stock.step(x0, t, x, eta=1.0, variance_noise=noises[number]).prev_sample
    times = trailing_times(count, 1000)
    ours = ancestral(gaussian_x0(SCHEDULE), noises[0], SCHEDULE, times, lambda n: noises[n])
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_one_step_needs_no_noise() -> None:
    x = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    found = ancestral(gaussian_x0(SCHEDULE), x, SCHEDULE, [999], lambda step: torch.full((), 1e9))
    assert torch.equal(found, gaussian_x0(SCHEDULE)(x, torch.full((4,), 999)))
