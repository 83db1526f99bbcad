"""Heun's samplers against a Gaussian, whose flow and whose law at every level are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stack.diffusion.heun import (
    CIFAR10_CHURN,
    IMAGENET64_CHURN,
    Churn,
    heun,
    heun_nfe,
    stochastic_heun,
)
from stack.diffusion.karras import SIGMA_MAX, karras_sigmas
from stack.util import keyed

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


COUNT = 40_000
CHURNS = {"cifar10": CIFAR10_CHURN, "imagenet64": IMAGENET64_CHURN}
every_churn = pytest.mark.parametrize("churn", CHURNS.values(), ids=CHURNS)


def drawn(role: str) -> Callable[[int], Tensor]:
    """Unit noise (COUNT, 1) of a step."""
    places = torch.arange(COUNT)
    return lambda step: keyed.normal((1,), seed=0, iteration=step, role=role, positions=places)


def churned(churn: Churn, steps: int, role: str = "sample") -> Tensor:
    begin = drawn("begin")(0)
    return stochastic_heun(gaussian_x0, begin, karras_sigmas(steps), churn, drawn(role))


@every_churn
def test_fresh_noise_keeps_the_law(churn: Churn) -> None:
    """With noise of standard deviation 1, which takes a level's law to that of the raised one. The
    standard error of 40000 samples is below .003."""
    found = churned(replace(churn, noise=1.0), 256)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert found.std().item() == pytest.approx(STD, abs=0.01)


@every_churn
@pytest.mark.parametrize("steps", [6, 18])
def test_the_spread_is_what_the_algorithm_says(churn: Churn, steps: int) -> None:
    """All of it is affine in x and the noises: from levels and churn alone follows the variance."""
    variance = SIGMA_MAX**2
    levels = [*karras_sigmas(steps).tolist(), 0.0]
    for sigma, below in pairwise(levels):
        inside = churn.low <= sigma <= churn.high
        gamma = min(churn.amount / steps, 2**0.5 - 1) if inside else 0.0
        hat = sigma + gamma * sigma
        variance += churn.noise**2 * (hat**2 - sigma**2)
        # The slope at a level s is s / (STD^2 + s^2) of x, up to a constant.
        here = hat / (STD**2 + hat**2)
        factor = 1 + (below - hat) * here
        if below:
            factor = 1 + (below - hat) * (here + below / (STD**2 + below**2) * factor) / 2
        variance *= factor**2
    found = churned(churn, steps)
    assert found.std().item() == pytest.approx(variance**0.5, abs=0.006)


@every_churn
def test_pictures_depend_on_the_fresh_noise(churn: Churn) -> None:
    one, other = (churned(churn, 18, role) for role in ("one", "other"))
    assert not torch.allclose(one, other)
    assert torch.equal(one, churned(churn, 18, "one"))


def test_without_churn_it_is_heuns() -> None:
    begin, sigmas = drawn("begin")(0), karras_sigmas(18)
    for still in (Churn(0, 0, SIGMA_MAX, 1), Churn(40, 100, 200, 1)):
        assert torch.equal(churned(still, 18), heun(gaussian_x0, begin, sigmas))


def test_a_level_is_raised_by_two_fifths_at_most() -> None:
    assert IMAGENET64_CHURN.raised(10, 256) == pytest.approx(10 * (1 + 40 / 256))
    assert IMAGENET64_CHURN.raised(10, 18) == pytest.approx(10 * 2**0.5)
    assert IMAGENET64_CHURN.raised(60, 18) == 60
