"""EDM's noise levels and preconditioning, against the paper's formulas and conditions."""

from __future__ import annotations

import math

import pytest
import torch

from stack.diffusion.karras import (
    KarrasSchedule,
    LogNormalSigmas,
    edm_loss_weight,
    karras_sigmas,
    precondition,
)
from stack.diffusion.schedule import add_noise
from stack.diffusion.timesteps import UniformTimes

SCHEDULE = KarrasSchedule()
SIGMAS = torch.tensor([0.002, 0.05, 0.5, 3.0, 80.0], dtype=torch.float64)
DATA = [0.5, 1.0]


@pytest.mark.parametrize("steps", [2, 18, 40, 1000])
def test_levels_are_those_of_equation_5(steps: int) -> None:
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    exact = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)]
    sigmas = karras_sigmas(steps)
    assert sigmas.dtype == torch.float64
    assert sigmas.tolist() == pytest.approx(exact, rel=1e-12)
    assert (sigmas[0].item(), sigmas[-1].item()) == (80.0, 0.002)


def test_times_run_from_the_least_noise_to_the_most() -> None:
    t = torch.tensor([0, 999])
    assert SCHEDULE.steps == 1000
    assert SCHEDULE.prior_scale == 80.0
    assert torch.equal(SCHEDULE.sigma(t), torch.tensor([0.002, 80.0]))
    assert torch.equal(SCHEDULE.alpha(t), torch.ones(2))
    assert SCHEDULE.sigma(torch.arange(1000)).diff().min() > 0


@pytest.mark.parametrize("name", ["alpha", "sigma", "log_snr"])
def test_values_are_float32_of_the_shape_of_t(name: str) -> None:
    value = getattr(SCHEDULE, name)(torch.arange(6).view(2, 3))
    assert (value.dtype, value.shape) == (torch.float32, (2, 3))


def test_log_snr_is_that_of_alpha_and_sigma() -> None:
    t = torch.arange(1000)
    exact = (SCHEDULE.alpha(t).double() / SCHEDULE.sigma(t)).square().log()
    torch.testing.assert_close(SCHEDULE.log_snr(t).double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sigma", "log_snr"])
def test_float_times_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="times are integers"):
        getattr(SCHEDULE, name)(torch.tensor([1.0]))


def test_noise_is_added_as_x0_plus_sigma_eps() -> None:
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    sigma = SCHEDULE.sigma(t).view(3, 1, 1, 1)
    assert torch.equal(add_noise(x0, eps, t, SCHEDULE), x0 + sigma * eps)


def test_bins_of_log_snr_hold_equal_shares() -> None:
    """The edges by which the ratio's statistics are kept apart."""
    times = UniformTimes(20, 980)
    edges = times.log_snr_edges(SCHEDULE, 8)
    level = SCHEDULE.log_snr(torch.arange(20, 981))
    counts = torch.bucketize(level, edges).bincount(minlength=8)
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("sigma_data", DATA)
def test_input_and_target_of_the_network_have_unit_variance(sigma_data: float) -> None:
    """Appendix B.6: with Var[x0] = sigma_data^2, that of c_in x is 1, and that of F's target
    (x0 - c_skip x) / c_out too."""
    scales = precondition(SIGMAS, sigma_data)
    data, noise = sigma_data**2, SIGMAS**2
    ones = torch.ones_like(SIGMAS)
    torch.testing.assert_close(scales.into**2 * (data + noise), ones)
    left = (1 - scales.skip) ** 2 * data + scales.skip**2 * noise
    torch.testing.assert_close(left / scales.out**2, ones)


@pytest.mark.parametrize("sigma_data", DATA)
def test_skip_is_the_one_that_amplifies_errors_least(sigma_data: float) -> None:
    """Appendix B.6: c_skip minimizes c_out^2, the target's variance before it is divided out."""
    scales = precondition(SIGMAS, sigma_data)
    for change in (-1e-3, 1e-3):
        skip = scales.skip + change
        assert ((1 - skip) ** 2 * sigma_data**2 + (skip * SIGMAS) ** 2 > scales.out**2).all()


@pytest.mark.parametrize("sigma_data", DATA)
def test_loss_weight_undoes_the_output_scale(sigma_data: float) -> None:
    scales = precondition(SIGMAS, sigma_data)
    weight = edm_loss_weight(SIGMAS, sigma_data)
    torch.testing.assert_close(weight * scales.out**2, torch.ones_like(SIGMAS))


def test_noise_condition() -> None:
    assert precondition(SIGMAS).noise.tolist() == pytest.approx(
        [math.log(sigma) / 4 for sigma in SIGMAS.tolist()]
    )


def test_training_levels_are_log_normal_and_follow_the_key() -> None:
    positions = torch.arange(20_000)
    draw = LogNormalSigmas()
    sigma = draw.draw(seed=0, iteration=3, role="t", positions=positions)
    assert sigma.shape == (20_000,)
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.03)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.03)
    part = torch.tensor([5, 77])
    assert torch.equal(draw.draw(seed=0, iteration=3, role="t", positions=part), sigma[part])
