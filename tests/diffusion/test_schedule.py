"""Schedules, parameterizations and drawn times."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from stack.diffusion.guidance import guide
from stack.diffusion.parameterization import PARAMETERIZATIONS, loss_weight, predict_x0
from stack.diffusion.schedule import (
    DiscreteSchedule,
    add_noise,
    per_sample,
    schedule_from_config,
)
from stack.diffusion.timesteps import UniformTimes
from stack.util.errors import UserError

SCHEDULE = DiscreteSchedule.scaled_linear()
SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
NAMES = list(PARAMETERIZATIONS)


def test_defaults_are_stable_diffusions() -> None:
    stock = DDPMScheduler(**SD)
    torch.testing.assert_close(
        SCHEDULE.alphas_cumprod.float(), stock.alphas_cumprod, rtol=1e-5, atol=0
    )
    assert SCHEDULE.alpha(torch.tensor(999)).item() == pytest.approx(0.068, abs=5e-4)
    assert torch.equal(schedule_from_config(SD, "here").alphas_cumprod, SCHEDULE.alphas_cumprod)


def test_unknown_beta_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="here: beta_schedule: 'odd' is not one of scaled_linear"):
        schedule_from_config(SD | {"beta_schedule": "odd"}, "here")


def test_variance_is_preserved_and_log_snr_falls() -> None:
    t = torch.arange(1000)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000))
    torch.testing.assert_close(SCHEDULE.log_snr(t), 2 * (alpha.log() - sigma.log()))
    assert (SCHEDULE.log_snr(t).diff() < 0).all()
    assert alpha.dtype == sigma.dtype == SCHEDULE.log_snr(t).dtype == torch.float32


@pytest.mark.parametrize("of", ["alpha", "sigma", "log_snr"])
def test_float_times_are_refused(of: str) -> None:
    with pytest.raises(TypeError, match="times are integers"):
        getattr(SCHEDULE, of)(torch.tensor([500.5]))


def diffused(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x0, eps = torch.randn(2, len(t), 4, 2, 2)
    return x0, eps, add_noise(x0, eps, t, SCHEDULE)


def prediction(name: str, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = (per_sample(s, x0) for s in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    return {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[name]


@pytest.mark.parametrize("name", NAMES)
def test_x0_is_read_back(name: str) -> None:
    t = torch.tensor([0, 20, 500, 980, 999])
    x0, eps, x_t = diffused(t)
    read = predict_x0(prediction(name, x0, eps, t), x_t, t, SCHEDULE, name)
    torch.testing.assert_close(read, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_loss_weight_turns_an_error_in_x0_into_one_in_the_target(name: str) -> None:
    """|F - F_true|^2 = w |x0 - x0_true|^2, sample by sample."""
    t = torch.tensor([1, 20, 300, 700, 999])
    x0, eps, x_t = diffused(t)
    true = prediction(name, x0, eps, t)
    guess = true + 0.1 * torch.randn_like(true)
    in_target = (guess - true).square().flatten(1).mean(1)
    in_x0 = (predict_x0(guess, x_t, t, SCHEDULE, name) - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(in_target, loss_weight(t, SCHEDULE, name) * in_x0, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_x0_is_float32_from_bf16_predictions(name: str) -> None:
    t = torch.tensor([999])
    half = torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)
    assert predict_x0(half, half, t, SCHEDULE, name).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_guidance_in_x0_is_guidance_in_the_prediction(name: str) -> None:
    t = torch.tensor([20, 500, 999])
    x0, eps, x_t = diffused(t)
    cond, uncond = prediction(name, x0, eps, t), prediction(name, eps, x0, t)
    ahead = predict_x0(guide(cond, uncond, 1.75), x_t, t, SCHEDULE, name)
    after = guide(*(predict_x0(f, x_t, t, SCHEDULE, name) for f in (cond, uncond)), 1.75)
    torch.testing.assert_close(ahead, after, rtol=1e-3, atol=1e-3)


def test_times_are_uniform_over_both_ends() -> None:
    times = UniformTimes(20, 24)
    t = times.draw(seed=0, iteration=0, role="t", positions=torch.arange(50000))
    counts = torch.bincount(t - 20, minlength=5)
    assert len(counts) == 5
    assert (counts / 10000 - 1).abs().max() < 0.05
    assert t.dtype == torch.int64


def test_edges_part_the_times_exactly() -> None:
    times = UniformTimes(0, 99)
    edges = times.log_snr_edges(SCHEDULE, 10)
    level = torch.bucketize(SCHEDULE.log_snr(torch.arange(100)), edges, right=True)
    assert torch.bincount(level).tolist() == [10] * 10
