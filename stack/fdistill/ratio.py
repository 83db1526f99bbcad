"""From discriminator logits to the weight h: clip, normalise r per noise level, normalise h.

The discriminator tells diffused data (1) from diffused student samples (0), so its logit is
log r with r = p_t / q_t at the same (x_t, t, c) as the score difference (paper, Section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from stack.fdistill.divergence import Divergence

AllReduceMean = Callable[[Tensor], Tensor]


def identity(value: Tensor) -> Tensor:
    """The mean over one rank."""
    return value


def log_density_ratio(
    logits: Tensor, *, logit_clamp: float = 10.0, r_min: float = 0.1, r_max: float = 20.0
) -> Tensor:
    """log r of (B, heads) logits: mean over heads, then both clips; (B,) float32."""
    mean = logits.float().flatten(1).mean(1) if logits.ndim > 1 else logits.float()
    return mean.clamp(-logit_clamp, logit_clamp).clamp(log(r_min), log(r_max))


def density_ratio(
    logits: Tensor, *, logit_clamp: float = 10.0, r_min: float = 0.1, r_max: float = 20.0
) -> Tensor:
    """r = exp(logit), clipped; (B, heads) or (B,) logits to (B,) float32."""
    return log_density_ratio(logits, logit_clamp=logit_clamp, r_min=r_min, r_max=r_max).exp()


def unit_mean(h: Tensor, all_reduce_mean: AllReduceMean = identity) -> Tensor:
    """h divided by its mean over the global batch (second normalisation)."""
    return h / all_reduce_mean(h.mean())


class RatioNormalizer:
    """Running mean of r per noise level, so that E_q[r_t] = 1 at every level.

    E_q[p_t / q_t] = 1 holds at each t, so a mean that differs from 1 is the discriminator's
    error there. Each level's mean is shrunk towards the mean of all levels, and that one
    towards 1, by ``prior`` samples' worth of belief: a lone sample in a level keeps its ratio.
    """

    def __init__(self, edges: Tensor, *, decay: float = 0.9, prior: float = 16.0) -> None:
        """
        Args:
            edges: (K - 1,) ascending log-SNR values, each the lowest of its level.
            decay: share of the sums that survives an update.
            prior: pseudo-samples of each shrinkage.
        """
        self.edges, self.decay, self.prior = edges, decay, prior
        levels = len(edges) + 1
        self.sums = torch.zeros(levels, dtype=torch.float64, device=edges.device)
        self.counts = torch.zeros(levels, dtype=torch.float64, device=edges.device)

    def update(
        self,
        r: Tensor,
        log_snr: Tensor,
        *,
        global_batch: int | None = None,
        all_reduce_mean: AllReduceMean = identity,
    ) -> None:
        """Take in one global batch; training only.

        Args:
            r, log_snr: (B,) this rank's ratios and noise levels.
            global_batch: samples over all ranks; B if None.
        """
        level = self._level(log_snr)
        sums = torch.zeros_like(self.sums).index_add_(0, level, r.double())
        counts = torch.zeros_like(self.counts).index_add_(0, level, torch.ones_like(r.double()))
        # Shares of the global batch first, because ranks can only be averaged.
        share = all_reduce_mean(torch.stack((sums, counts)) / len(r))
        total = share * (len(r) if global_batch is None else global_batch)
        self.sums = self.decay * self.sums + total[0]
        self.counts = self.decay * self.counts + total[1]

    def means(self) -> Tensor:
        """(K,) float64 shrunk mean of r per level."""
        overall = (self.sums.sum() + self.prior) / (self.counts.sum() + self.prior)
        if self.prior == 0:
            overall = overall.nan_to_num(1.0)
        return ((self.sums + self.prior * overall) / (self.counts + self.prior)).nan_to_num(1.0)

    def normalize_log(self, log_r: Tensor, log_snr: Tensor) -> Tensor:
        """log of r over its level's mean; (B,), leaves the state alone."""
        return log_r - self.means().log().to(log_r.dtype)[self._level(log_snr)]

    def state_dict(self) -> dict[str, Tensor]:
        """Sums and counts, float64."""
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state of equally many levels."""
        self.sums, self.counts = state["sums"].clone(), state["counts"].clone()

    def _level(self, log_snr: Tensor) -> Tensor:
        return torch.bucketize(log_snr, self.edges, right=True)


@dataclass
class RatioWeight:
    """h of a batch: both normalisations, warmup and ramp (paper, Section 3.3)."""

    divergence: Divergence
    normalizer: RatioNormalizer
    normalize_r: bool = True
    normalize_h: bool = True
    warmup: int = 0
    ramp: int = 0

    def __call__(
        self,
        log_r: Tensor,
        log_snr: Tensor,
        iteration: int,
        *,
        global_batch: int | None = None,
        all_reduce_mean: AllReduceMean = identity,
    ) -> Tensor:
        """(B,) weights of this rank's samples of one global batch, and the normaliser's update.

        Args:
            log_r: (B,) clipped log ratios. log_snr: (B,) their noise levels.
        """
        if self.normalize_r:
            self.normalizer.update(
                log_r.exp(), log_snr, global_batch=global_batch, all_reduce_mean=all_reduce_mean
            )
            log_r = self.normalizer.normalize_log(log_r, log_snr)
        h = self.divergence.h_from_log(log_r)
        if self.normalize_h:
            h = unit_mean(h, all_reduce_mean)
        return torch.lerp(torch.ones_like(h), h, self.trust(iteration))

    def trust(self, iteration: int) -> float:
        """0 during the warmup, 1 after the ramp: how far h is blended in."""
        if iteration < self.warmup:
            return 0.0
        return min(1.0, (iteration - self.warmup + 1) / (self.ramp + 1))
