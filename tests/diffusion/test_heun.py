"""Heun's sampler against the analytic flow of a Gaussian."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stack.diffusion.heun import heun, heun_nfe
from stack.diffusion.karras import SIGMA_MAX, karras_sigmas

MEAN, STD = 0.3, 0.5
NOISE = torch.linspace(-2, 2, 9)[:, None]


def gaussian_x0(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of x0 ~ N(MEAN, STD^2)."""
    gain = STD**2 / (STD**2 + sigma**2)
    return MEAN + gain[:, None] * (x - MEAN)


def exact() -> Tensor:
    """The flow maps (x - m) / sqrt(s^2 + sigma^2) unchanged to sigma = 0."""
    start = NOISE.double() * SIGMA_MAX
    return MEAN + STD * (start - MEAN) / (STD**2 + SIGMA_MAX**2) ** 0.5


def error(steps: int) -> float:
    return (heun(gaussian_x0, NOISE, karras_sigmas(steps)) - exact()).abs().max().item()


def test_recovers_a_gaussian_with_the_teachers_steps() -> None:
    """Out of a spread of 2 from end to end."""
    assert error(18) < 0.06
    assert error(40) < 0.01


def test_converges_with_the_second_order() -> None:
    errors = [error(steps) for steps in (32, 64, 128, 256)]
    ratios = [larger / smaller for larger, smaller in pairwise(errors)]
    assert ratios == pytest.approx([4, 4, 4], rel=0.2)


@pytest.mark.parametrize(("steps", "nfe"), [(2, 3), (18, 35), (40, 79)])
def test_number_of_evaluations(steps: int, nfe: int) -> None:
    levels: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        assert (x.dtype, sigma.dtype) == (torch.float64, torch.float64)
        levels.append(sigma[0].item())
        return gaussian_x0(x, sigma).float()

    x0 = heun(denoise, NOISE, karras_sigmas(steps))
    assert x0.dtype == torch.float64
    assert len(levels) == heun_nfe(steps) == nfe
    assert set(levels) == set(karras_sigmas(steps).tolist())


def test_a_constant_denoiser_is_reached_exactly() -> None:
    x0 = heun(lambda x, sigma: torch.full_like(x, 0.25), NOISE, karras_sigmas(18))
    torch.testing.assert_close(x0, torch.full_like(x0, 0.25), rtol=0, atol=1e-12)
