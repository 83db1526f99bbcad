"""EDM's samplers (Karras et al. 2022, arXiv 2206.00364): Algorithm 1, of the ODE, and Algorithm 2,
which adds fresh noise on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""D: (x (B, ...) float64, sigma (B,) float64) -> x0 (B, ...) of any dtype."""


@dataclass(frozen=True)
class Churn:
    """How Algorithm 2 adds noise.

    Args:
        amount: S_churn; a step raises its level by amount / steps of it, by sqrt(2) - 1 at most.
        low, high: S_tmin and S_tmax, the levels between which it does.
        noise: S_noise, the standard deviation of what is added; above 1 against lost detail.
    """

    amount: float
    low: float
    high: float
    noise: float

    def raised(self, sigma: float, steps: int) -> float:
        """The level to which a step that begins at ``sigma`` adds noise."""
        if not self.low <= sigma <= self.high:
            return sigma
        return sigma * (1 + min(self.amount / steps, math.sqrt(2) - 1))


CIFAR10_CHURN = Churn(amount=30, low=0.01, high=1, noise=1.007)
IMAGENET64_CHURN = Churn(amount=40, low=0.05, high=50, noise=1.003)
"""Table 5, of the networks that are published as edm-cifar10-32x32-*-vp and
edm-imagenet-64x64-cond-adm."""


def heun_nfe(steps: int) -> int:
    """Network evaluations of either sampler: two a step, one in the last (18: 35, 40: 79)."""
    return 2 * steps - 1


def heun(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Algorithm 1: dx/dsigma = (x - D(x; sigma)) / sigma from the first sigma down to 0.

    Args:
        noise: (B, ...) unit noise.
        sigmas: (n,) descending noise levels, such as :func:`karras_sigmas` gives.

    Returns: x0 (B, ...) float64; the state is kept in float64 throughout, as in the paper's code.
    """
    levels = [*sigmas.tolist(), 0.0]
    x = noise.double() * levels[0]
    for sigma, below in pairwise(levels):
        x = _step(denoise, x, sigma, below)
    return x


def stochastic_heun(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    churn: Churn,
    fresh: Callable[[int], Tensor],
) -> Tensor:
    """Algorithm 2: a step first adds noise, and then goes down from the raised level.

    Args:
        noise, sigmas: as of :func:`heun`, to which no churn leads back.
        fresh: from the number of a step, 1 for the first, to unit noise of ``noise``'s shape.
    """
    levels = [*sigmas.tolist(), 0.0]
    x = noise.double() * levels[0]
    for number, (sigma, below) in enumerate(pairwise(levels), 1):
        raised = churn.raised(sigma, len(sigmas))
        if raised > sigma:
            spread = churn.noise * math.sqrt(raised**2 - sigma**2)
            x = x + spread * fresh(number).double()
        x = _step(denoise, x, raised, below)
    return x


def _step(denoise: Denoise, x: Tensor, sigma: float, below: float) -> Tensor:
    """From one level to a lower one by the mean of the slopes at both."""

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
        return (x - denoise(x, level).double()) / sigma

    here = slope(x, sigma)
    euler = x + (below - sigma) * here
    # At 0 the slope is not defined: the last step is Euler's.
    return x + (below - sigma) * (here + slope(euler, below)) / 2 if below else euler
