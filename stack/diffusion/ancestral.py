"""A sampler of the reverse SDE: a function of x0 predictions, a list of times and fresh noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stack.diffusion.schedule import Schedule


def ancestral(
    x0_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    schedule: Schedule,
    times: list[int],
    noise_of: Callable[[int], Tensor],
) -> Tensor:
    """DDPM's ancestral sampler at any times (Song et al. 2021, eq. 12 and 16 with eta = 1).

    A step draws from q(x_s | x_t, x0) of the forward process (Ho et al. 2020, eq. 7) with the
    predicted x0, so with a perfect prediction it converges to the data as steps grow. The last step
    returns x0.

    Args:
        x0_of: (x_t (B, ...), t (B,)) -> x0 prediction (B, ...).
        x: (B, ...) unit noise at the first time. times: descending.
        noise_of: from the number of a step, 1 for the first, to unit noise of x's shape.
    """
    for i, time in enumerate(times):
        t = torch.full((len(x),), time, device=x.device)
        x0 = x0_of(x, t)
        if i + 1 == len(times):
            return x0
        below = torch.tensor(times[i + 1], device=x.device)
        alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
        alpha_s, sigma_s = schedule.alpha(below), schedule.sigma(below)
        # Of x_t given x_s: x_t = (alpha / alpha_s) x_s + noise of this variance.
        variance = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
        spread = sigma_s / sigma * variance.clamp(min=0).sqrt()
        eps = (x - alpha * x0) / sigma
        kept = (sigma_s**2 - spread**2).clamp(min=0).sqrt()
        x = alpha_s * x0 + kept * eps + spread * noise_of(i + 1)
    return x
