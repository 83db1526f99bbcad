"""The paper's two-dimensional example (Fig. 2 and 8): everything but the student is analytic.

The teacher is the exact denoiser of a ring of equal Gaussians, the data are samples of that
ring, and student and fake score start as one Gaussian set off to a side. Samples are (B, 2),
there is no condition: c is (B, 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from stack.diffusion.parameterization import loss_weight
from stack.diffusion.schedule import DiscreteSchedule
from stack.util import keyed

_FREQUENCIES = (0.5, 1.0, 2.0)
FEATURE_CHANNELS = 3 + 2 * len(_FREQUENCIES)
"""Length of the feature vector: x_t, log-SNR and its sinusoids."""


def ring(modes: int, radius: float) -> Tensor:
    """(K, 2) centres at equal angles, the first on the positive x axis."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return (radius * torch.stack((angle.cos(), angle.sin()), dim=1)).float()


def _features(x_t: Tensor, t: Tensor, schedule: DiscreteSchedule) -> Tensor:
    """(B, FEATURE_CHANNELS): x_t beside an embedding of the noise level, all of order one."""
    level = schedule.log_snr(t)[:, None] / 4
    waves = [wave(f * level) for f in _FREQUENCIES for wave in (torch.sin, torch.cos)]
    return torch.cat((x_t, level, *waves), dim=1)


class MixtureDenoiser(nn.Module):
    """The teacher: posterior mean E[x0 | x_t] of an equal-weight Gaussian mixture.

    Args:
        centres: (K, 2) means. std: standard deviation of each Gaussian.
    """

    centres: Tensor
    feature_channels = FEATURE_CHANNELS

    def __init__(self, schedule: DiscreteSchedule, centres: Tensor, std: float) -> None:
        super().__init__()
        self.schedule, self.std = schedule, std
        self.register_buffer("centres", centres)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x0 (B, 2) of x_t (B, 2), t (B,) int64."""
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        variance = (alpha * self.std) ** 2 + sigma**2
        offset = x_t[:, None] - alpha[:, None] * self.centres
        share = (-offset.square().sum(-1) / (2 * variance)).softmax(dim=1)
        means = self.centres + (alpha * self.std**2 / variance)[:, None] * offset
        return (share[..., None] * means).sum(1)

    def features(self, x_t: Tensor, t: Tensor, c: Tensor) -> list[Tensor]:
        """One (B, FEATURE_CHANNELS) vector."""
        return [_features(x_t, t, self.schedule)]

    def x0_and_features(self, x_t: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Both; gradient only through the features."""
        with torch.no_grad():
            x0 = self(x_t, t, c)
        return x0, self.features(x_t, t, c)

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,) the weight of :class:`SkewedDenoiser`."""
        return loss_weight(t, self.schedule, "v_prediction")

    def sample(self, positions: Tensor, *, seed: int, iteration: int) -> Tensor:
        """(B, 2) data, a function of the key alone."""
        key: dict[str, Any] = {"seed": seed, "iteration": iteration, "positions": positions}
        mode = (keyed.uniform((), role="data/mode", **key) * len(self.centres)).long()
        return self.centres[mode] + self.std * keyed.normal((2,), role="data/noise", **key)


class _Residual(nn.Sequential):
    """A multilayer perceptron with ``layers`` hidden layers that starts out as zero."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        sizes = [channels, *[width] * layers]
        hidden = [[nn.Linear(i, o), nn.SiLU()] for i, o in pairwise(sizes)]
        last = nn.Linear(width, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(*chain(*hidden), last)

    def hidden(self, value: Tensor) -> Tensor:
        """(B, width) what the last layer reads."""
        for layer in list(self)[:-1]:
            value = layer(value)
        return value


class _Small(nn.Module):
    """A network that is one unit of sharding."""

    def blocks(self) -> Iterator[nn.Module]:
        """No parts to be gathered one at a time."""
        return iter(())


class SkewedDenoiser(_Small):
    """The fake score: exact denoiser of N(centre, std^2) plus a residual in v. Its features are
    that residual's hidden units."""

    centre: Tensor

    def __init__(
        self, schedule: DiscreteSchedule, centre: tuple[float, float], std: float, width: int
    ) -> None:
        super().__init__()
        self.schedule, self.std, self.feature_channels = schedule, std, width
        self.register_buffer("centre", torch.tensor(centre))
        self.residual = _Residual(FEATURE_CHANNELS, width, layers=3)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x0 (B, 2) of x_t (B, 2), t (B,) int64."""
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        gain = alpha * self.std**2 / ((alpha * self.std) ** 2 + sigma**2)
        exact = self.centre + gain * (x_t - alpha * self.centre)
        return exact - sigma * self.residual(_features(x_t, t, self.schedule))

    def features(self, x_t: Tensor, t: Tensor, c: Tensor) -> list[Tensor]:
        """One (B, feature_channels) vector."""
        return [self.residual.hidden(_features(x_t, t, self.schedule))]

    def x0_and_features(self, x_t: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Both; gradient only through the features."""
        with torch.no_grad():
            x0 = self(x_t, t, c)
        return x0, self.features(x_t, t, c)

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,) weight that makes an error in x0 one in v."""
        return loss_weight(t, self.schedule, "v_prediction")


class SkewedStudent(_Small):
    """The student: x = centre + std z + residual(z), a sampler of N(centre, std^2) at first."""

    centre: Tensor

    def __init__(
        self, schedule: DiscreteSchedule, centre: tuple[float, float], std: float, width: int
    ) -> None:
        super().__init__()
        self.schedule, self.std = schedule, std
        self.register_buffer("centre", torch.tensor(centre))
        self.residual = _Residual(2, width, layers=2)

    def forward(self, z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x (B, 2) of unit noise z (B, 2); t is the last time and c empty."""
        return self.centre + self.std * z + self.residual(z)
