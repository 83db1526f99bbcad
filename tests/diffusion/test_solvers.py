"""DDIM against an analytic solution and against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from stack.diffusion.parameterization import predict_x0
from stack.diffusion.schedule import DiscreteSchedule
from stack.diffusion.solvers import ddim, trailing_times

SCHEDULE = DiscreteSchedule.scaled_linear()
MEAN, STD = 0.7, 0.5


def gaussian_x0(x_t: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t] of x0 ~ N(MEAN, STD^2)."""
    alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x_t - alpha * MEAN)


def test_ddim_follows_the_analytic_flow_of_a_gaussian() -> None:
    """The probability-flow ODE maps (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2) unchanged."""
    t = torch.tensor(999)
    x = torch.linspace(-2, 2, 9)[:, None]
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    exact = MEAN + STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
    errors = [
        (ddim(gaussian_x0, x, SCHEDULE, trailing_times(n, 1000)) - exact).abs().max().item()
        for n in (10, 100, 1000)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 5e-3


def test_one_trailing_step_is_x0() -> None:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert trailing_times(1, 1000) == [999]
    assert torch.equal(ddim(gaussian_x0, x, SCHEDULE, [999]), gaussian_x0(x, torch.full((4,), 999)))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10, 20, 25, 50, 100, 999, 1000])
def test_trailing_times_are_those_of_diffusers(count: int) -> None:
    stock = stock_scheduler("epsilon")
    stock.set_timesteps(count)
    assert trailing_times(count, 1000) == stock.timesteps.tolist()


def stock_scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,
    )


@pytest.mark.parametrize("count", [1, 4, 25])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddim_steps_like_diffusers(prediction_type: str, count: int) -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(1.3 * x + 0.1 * (t / 1000).view(-1, 1, 1, 1))

    visited = []

    def x0_of(x: Tensor, t: Tensor) -> Tensor:
        visited.append(x)
        return predict_x0(network(x, t), x, t, SCHEDULE, prediction_type)

    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    last = ddim(x0_of, x, SCHEDULE, trailing_times(count, 1000))
    stock = stock_scheduler(prediction_type)
    stock.set_timesteps(count)
    for mine, t in zip([*visited[1:], last], stock.timesteps, strict=True):
        x = stock.step(network(x, t.expand(2)), t, x).prev_sample
        torch.testing.assert_close(mine, x, rtol=2e-4, atol=2e-4)


def test_stock_noise_is_ours() -> None:
    from stack.diffusion.schedule import add_noise

    x0, eps = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    stock = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(add_noise(x0, eps, t, SCHEDULE), stock.add_noise(x0, eps, t))
