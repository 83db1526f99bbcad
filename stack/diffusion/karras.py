"""EDM's noise levels, preconditioning and loss weight: x_t = x0 + sigma eps.

Equations and tables are those of Karras et al. 2022, "Elucidating the Design Space of
Diffusion-Based Generative Models" (arXiv 2206.00364).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stack.diffusion.table import Table
from stack.util import keyed

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
"""Ends and curvature of the noise levels (Table 1, "EDM")."""
SIGMA_DATA = 0.5
"""Standard deviation of pictures in [-1, 1] (Table 1)."""


def karras_sigmas(
    steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """(steps,) float64 noise levels from ``sigma_max`` down to ``sigma_min`` (eq. 5, whose
    closing zero is left to the sampler); at least two."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = torch.linspace(high, low, steps, dtype=torch.float64) ** rho
    # The ends are given numbers: not the rounded powers of rounded roots.
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas


class KarrasSchedule:
    """alpha(t) = 1, sigma(t) and log-SNR at integer times t in [0, T), of rising noise.

    Kept in float64 and returned in float32, as :class:`DiscreteSchedule` does.
    """

    def __init__(
        self,
        steps: int = 1000,
        sigma_min: float = SIGMA_MIN,
        sigma_max: float = SIGMA_MAX,
        rho: float = RHO,
    ) -> None:
        self.sigmas = karras_sigmas(steps, sigma_min, sigma_max, rho).flip(0)
        self._table = Table(self.sigmas)

    @property
    def steps(self) -> int:
        """T, the number of times."""
        return len(self.sigmas)

    @property
    def prior_scale(self) -> float:
        """sigma at T - 1; the data's own variance is left out."""
        return self.sigmas[-1].item()

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale: ones, float32 of t's shape."""
        return torch.ones_like(t, dtype=torch.float32)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, float32 of t's shape."""
        return self._table.at(t).float()

    def log_snr(self, t: Tensor) -> Tensor:
        """log(1 / sigma^2), float32 of t's shape."""
        return self._table.at(t).log().mul(-2).float()


class Scales(NamedTuple):
    """The four functions of sigma in D(x; sigma) = skip x + out F(into x; noise) (eq. 7)."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def precondition(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Scales:
    """Table 1, "EDM": F's input and its training target have unit variance at every sigma."""
    total = (sigma**2 + sigma_data**2).sqrt()
    return Scales(
        skip=(sigma_data / total) ** 2,
        out=sigma * sigma_data / total,
        into=1 / total,
        noise=sigma.log() / 4,
    )


def edm_loss_weight(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """lambda(sigma) = 1 / c_out^2 (Table 1): a squared error in x0 becomes one in F's target."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@dataclass(frozen=True)
class LogNormalSigmas:
    """Noise levels of training: ln(sigma) ~ N(mean, std^2) (Table 1, "Noise distribution")."""

    mean: float = -1.2
    std: float = 1.2

    def draw(self, *, seed: int, iteration: int, role: str, positions: Tensor) -> Tensor:
        """(B,) float32 sigmas, a function of the key alone."""
        z = keyed.normal((), seed=seed, iteration=iteration, role=role, positions=positions)
        return (self.mean + self.std * z).exp()
