"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps; here the variance-preserving ones."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from stack.diffusion.table import Table
from stack.util.errors import UserError

SD_BETAS = 0.00085, 0.012
"""First and last beta of Stable Diffusion v1.5."""


class Schedule(Protocol):
    """Noise levels at integer times t in [0, T), of rising noise."""

    @property
    def steps(self) -> int:
        """T, the number of times."""

    @property
    def prior_scale(self) -> float:
        """What unit noise is multiplied by to stand for x at T - 1."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale, float32 of t's shape."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, float32 of t's shape."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), float32 of t's shape."""


class DiscreteSchedule:
    """alpha(t), sigma(t) and log-SNR at integer times t in [0, T).

    Kept in float64 and returned in float32: at t = 999 of Stable Diffusion alpha is 0.068, and
    reading x0 there divides by it. Times are integers so that the noise level and the network's
    time embedding cannot disagree.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """Args: alphas_cumprod: (T,) the products of 1 - beta, which are alpha(t)^2."""
        self.alphas_cumprod = alphas_cumprod.double()
        self._table = Table(self.alphas_cumprod)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = SD_BETAS[0], beta_end: float = SD_BETAS[1], steps: int = 1000
    ) -> DiscreteSchedule:
        """Betas linear in their square root; the defaults are Stable Diffusion v1.5's."""
        return cls.of_betas(
            torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
        )

    @classmethod
    def of_betas(cls, betas: Tensor) -> DiscreteSchedule:
        """Args: betas: (T,) of each time."""
        return cls(torch.cumprod(1 - betas.double(), dim=0))

    def zero_snr(self) -> DiscreteSchedule:
        """alpha moved and scaled to end at 0 and to begin where it does (Lin et al., "Common
        diffusion noise schedules and sample steps are flawed", arXiv 2305.08891, algorithm 1)."""
        alpha = self.alphas_cumprod.sqrt()
        first, last = alpha[0], alpha[-1]
        return DiscreteSchedule(((alpha - last) * (first / (first - last))).square())

    @property
    def steps(self) -> int:
        """T, the number of times."""
        return len(self.alphas_cumprod)

    @property
    def prior_scale(self) -> float:
        """1: the noise of x at T - 1, whatever is left of the signal there, has unit variance."""
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale, float32 of t's shape."""
        return self._table.at(t).sqrt().float()

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, float32 of t's shape."""
        return (1 - self._table.at(t)).sqrt().float()

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), float32 of t's shape."""
        squared = self._table.at(t)
        return (squared.log() - (-squared).log1p()).float()


_BETAS = {"scaled_linear": DiscreteSchedule.scaled_linear}


def schedule_from_config(config: dict, source: str) -> DiscreteSchedule:
    """The schedule that a diffusers ``scheduler_config.json`` describes.

    Args:
        config: the parsed file.
        source: its name, for errors.

    Raises:
        UserError: a beta schedule this project does not know, betas that are not one for each
            time, or alpha = 0 where the network predicts anything but v: x0 = (x_t - sigma eps) /
            alpha, and an x0 that is predicted has no other target.
    """
    schedule = _trained(config, source) if config.get("trained_betas") else _named(config, source)
    if config.get("rescale_betas_zero_snr"):
        schedule = schedule.zero_snr()
    predicts = config.get("prediction_type", "epsilon")
    if predicts != "v_prediction" and not schedule.alphas_cumprod.all():
        raise UserError(
            f"{source}: prediction_type: {predicts!r} does not go with a schedule whose alpha ends "
            "at 0 (rescale_betas_zero_snr); take a teacher that predicts v"
        )
    return schedule


def _trained(config: dict, source: str) -> DiscreteSchedule:
    """Betas that a file lists come before its beta_schedule, as in diffusers."""
    betas, steps = config["trained_betas"], config["num_train_timesteps"]
    if len(betas) != steps:
        raise UserError(f"{source}: trained_betas: {len(betas)} of num_train_timesteps = {steps}")
    return DiscreteSchedule.of_betas(torch.tensor(betas, dtype=torch.float64))


def _named(config: dict, source: str) -> DiscreteSchedule:
    name = config.get("beta_schedule")
    if name not in _BETAS:
        raise UserError(f"{source}: beta_schedule: {name!r} is not one of {', '.join(_BETAS)}")
    return _BETAS[name](config["beta_start"], config["beta_end"], config["num_train_timesteps"])


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """View a (B,) tensor as (B, 1, ..., 1), to multiply samples of ``like``'s rank."""
    return value.view(-1, *(1,) * (like.ndim - 1))


def add_noise(x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) eps; x0, eps (B, ...), t (B,)."""
    return per_sample(schedule.alpha(t), x0) * x0 + per_sample(schedule.sigma(t), x0) * eps
