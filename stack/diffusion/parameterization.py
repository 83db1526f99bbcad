"""What a network predicts, and how x0 is read from it.

The prediction F of a network at x_t = alpha x0 + sigma eps (alpha^2 + sigma^2 = 1):

    epsilon       F = eps                    x0 = (x_t - sigma F) / alpha
    v_prediction  F = alpha eps - sigma x0   x0 = alpha x_t - sigma F   (Salimans & Ho 2022)
    sample        F = x0                     x0 = F
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stack.diffusion.schedule import DiscreteSchedule, per_sample


@dataclass(frozen=True)
class Parameterization:
    """One row of the table above.

    Args:
        x0: (F, x_t, alpha, sigma) -> x0, in the arguments' precision.
        loss_weight: (alpha, sigma) -> w with |F - F_true|^2 = w |x0 - x0_true|^2.
    """

    x0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    loss_weight: Callable[[Tensor, Tensor], Tensor]


PARAMETERIZATIONS = {
    "epsilon": Parameterization(
        x0=lambda f, x_t, alpha, sigma: (x_t - sigma * f) / alpha,
        loss_weight=lambda alpha, sigma: (alpha / sigma) ** 2,
    ),
    "v_prediction": Parameterization(
        x0=lambda f, x_t, alpha, sigma: alpha * x_t - sigma * f,
        loss_weight=lambda alpha, sigma: 1 / sigma**2,
    ),
    "sample": Parameterization(
        x0=lambda f, x_t, alpha, sigma: f,
        loss_weight=lambda alpha, sigma: alpha / alpha,
    ),
}


def predict_x0(
    prediction: Tensor, x_t: Tensor, t: Tensor, schedule: DiscreteSchedule, name: str
) -> Tensor:
    """x0 in float32 from a network's prediction of any dtype; t (B,), the rest (B, ...)."""
    alpha, sigma = per_sample(schedule.alpha(t), x_t), per_sample(schedule.sigma(t), x_t)
    return PARAMETERIZATIONS[name].x0(prediction.float(), x_t.float(), alpha, sigma)


def loss_weight(t: Tensor, schedule: DiscreteSchedule, name: str) -> Tensor:
    """(B,) weight that makes a squared error in x0 one in the network's own target."""
    return PARAMETERIZATIONS[name].loss_weight(schedule.alpha(t), schedule.sigma(t))
