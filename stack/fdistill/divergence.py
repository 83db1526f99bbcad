"""The six f-divergences of Table 1, one row each.

D_f(p || q) = E_q[f(p / q)] with r = p / q, p the teacher and q the student. The gradient of the
distillation weighs the score difference by h(r) = f''(r) r^2 (paper, Theorem 1).

    name                 f(r)                              f''(r)                h(r)
    reverse_kl           -log r                            1 / r^2               1
    softened_reverse_kl  (r+1) log(1/2 + 1/(2r))           1 / (r^2 (r+1))       1 / (r+1)
    jensen_shannon       r log r - (r+1) log((r+1)/2)      1 / (r (r+1))         r / (r+1)
    squared_hellinger    1 - sqrt(r)                       1 / (4 r^(3/2))       sqrt(r) / 4
    forward_kl           r log r                           1 / r                 r
    jeffreys             (r-1) log r                       1 / r + 1 / r^2       r + 1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.nn.functional import softplus

LOG_LIMIT = 80.0
"""|log r| up to which h is exact; beyond, log r is clamped, so that e^80 fits into float32."""

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """One row: r, f(r), f'(r), f''(r) and h are tensors of one shape and dtype.

    ``log_h`` maps log r to log h, which is where every h comes from: finite for every logit.
    """

    name: str
    f: Function
    df: Function
    d2f: Function
    log_h: Function

    def h_from_log(self, log_r: Tensor) -> Tensor:
        """h(r) from log r, exact for \\|log r\\| <= 80 and clamped there beyond."""
        return self.log_h(log_r.clamp(-LOG_LIMIT, LOG_LIMIT)).exp()

    def h(self, r: Tensor) -> Tensor:
        """h(r) = f''(r) r^2 of a ratio r > 0."""
        return self.h_from_log(r.log())


def _softened_f(r: Tensor) -> Tensor:
    # log((1 + r) / (2 r)); log1p keeps it exact where r is large.
    return (r + 1) * (torch.log1p(1 / r) - log(2))


_ROWS = (
    Divergence(
        "reverse_kl",
        f=lambda r: -r.log(),
        df=lambda r: -1 / r,
        d2f=lambda r: r**-2,
        log_h=torch.zeros_like,
    ),
    Divergence(
        "softened_reverse_kl",
        f=_softened_f,
        df=lambda r: torch.log1p(1 / r) - log(2) - 1 / r,
        d2f=lambda r: r**-2 / (r + 1),
        log_h=lambda log_r: -softplus(log_r, threshold=LOG_LIMIT),
    ),
    Divergence(
        "jensen_shannon",
        f=lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
        df=lambda r: log(2) - torch.log1p(1 / r),
        d2f=lambda r: 1 / (r * (r + 1)),
        log_h=lambda log_r: -softplus(-log_r, threshold=LOG_LIMIT),
    ),
    Divergence(
        "squared_hellinger",
        f=lambda r: 1 - r.sqrt(),
        df=lambda r: -0.5 * r**-0.5,
        d2f=lambda r: 0.25 * r**-1.5,
        log_h=lambda log_r: 0.5 * log_r - log(4),
    ),
    Divergence(
        "forward_kl",
        f=lambda r: r * r.log(),
        df=lambda r: r.log() + 1,
        d2f=lambda r: 1 / r,
        log_h=lambda log_r: log_r,
    ),
    Divergence(
        "jeffreys",
        f=lambda r: (r - 1) * r.log(),
        df=lambda r: r.log() + 1 - 1 / r,
        d2f=lambda r: 1 / r + r**-2,
        log_h=lambda log_r: softplus(log_r, threshold=LOG_LIMIT),
    ),
)

DIVERGENCES: dict[str, Divergence] = {row.name: row for row in _ROWS}
