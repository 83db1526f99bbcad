"""EDM's deterministic sampler (Karras et al. 2022, arXiv 2206.00364, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def heun_nfe(steps: int) -> int:
    """Network evaluations of :func:`heun`: two a step, one in the last (18: 35, 40: 79)."""
    return 2 * steps - 1


def heun(denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate dx/dsigma = (x - D(x; sigma)) / sigma from the first sigma to 0 by Heun's method.

    Args:
        denoise: D: (x (B, ...) float64, sigma (B,) float64) -> x0 (B, ...) of any dtype.
        noise: (B, ...) unit noise.
        sigmas: (n,) descending noise levels, such as :func:`karras_sigmas` gives.

    Returns: x0 (B, ...) float64; the state is kept in float64 throughout, as in the paper's code.
    """

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
        return (x - denoise(x, level).double()) / sigma

    levels = [*sigmas.tolist(), 0.0]
    x = noise.double() * levels[0]
    for sigma, below in pairwise(levels):
        here = slope(x, sigma)
        euler = x + (below - sigma) * here
        # At 0 the slope is not defined: the last step is Euler's.
        x = x + (below - sigma) * (here + slope(euler, below)) / 2 if below else euler
    return x
