"""Samplers of the probability-flow ODE: a function of x0 predictions and a list of times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stack.diffusion.schedule import Schedule


def trailing_times(count: int, steps: int) -> list[int]:
    """``count`` descending times that begin at T - 1 (diffusers' ``trailing`` spacing)."""
    return [round(steps - i * steps / count) - 1 for i in range(count)]


def ddim(
    x0_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    schedule: Schedule,
    times: list[int],
) -> Tensor:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with eta = 0); the last step returns x0.

    Args:
        x0_of: (x_t (B, ...), t (B,)) -> x0 prediction (B, ...).
        x: (B, ...) unit noise at the first time.
        times: descending times; one of them, T - 1, makes this the student's sampler.
    """
    for i, time in enumerate(times):
        t = torch.full((len(x),), time, device=x.device)
        x0 = x0_of(x, t)
        if i + 1 == len(times):
            return x0
        eps = (x - schedule.alpha(t[0]) * x0) / schedule.sigma(t[0])
        below = torch.tensor(times[i + 1], device=x.device)
        x = schedule.alpha(below) * x0 + schedule.sigma(below) * eps
    return x
