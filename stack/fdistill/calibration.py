"""What tells whether the discriminator's ratio can be believed, per noise level.

With as many diffused data as diffused samples, the share of data among points of one logit is
r / (1 + r) = sigmoid(logit), if the logit is log r. Counting both over training's own batches,
each before its gradient is taken, costs nothing and needs no held-out set: noise and student
samples are new in every iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

BINS = 10
"""Of the prediction r / (1 + r), equally wide."""


@dataclass(frozen=True)
class NoiseLevels:
    """Classes of times by log-SNR; level 0 has the most noise.

    Args:
        edges: (K - 1,) ascending log-SNR, each the lowest of its level. log_snr: of times (B,).
    """

    edges: Tensor
    log_snr: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.edges) + 1

    def of(self, t: Tensor) -> Tensor:
        """(B,) int64 levels of times (B,)."""
        return torch.bucketize(self.log_snr(t), self.edges.to(t.device), right=True)


def critic_figures(
    real: Tensor, generated: Tensor, t: Tensor, x0: Tensor, x: Tensor
) -> dict[str, Tensor]:
    """What a critic step tells for the log, without gradient.

    Args:
        real, generated: (B, heads) logits of diffused data and samples, both at times t (B,).
        x0, x: (B, C, ...) data and student samples, not diffused.

    Returns: (B,) mean logits "logit/real" and "logit/fake", "t/gan"; of data and samples, (B, C)
        means over what follows the channels, "latent/real" and "latent/fake", and (B, D) thumbnails
        "thumbnail/real" and "thumbnail/fake".
    """
    told = {"logit/real": real.float().mean(1), "logit/fake": generated.float().mean(1), "t/gan": t}
    for name, value in (("real", x0), ("fake", x)):
        told[f"latent/{name}"] = value.float().reshape(*value.shape[:2], -1).mean(2)
        told[f"thumbnail/{name}"] = _thumbnail(value.float())
    return {name: value.detach() for name, value in told.items()}


def _thumbnail(x: Tensor) -> Tensor:
    """(B, D): pictures (B, C, H, W) in 4 x 4 fields, anything else as it is."""
    return (adaptive_avg_pool2d(x, 4) if x.ndim == 4 else x).flatten(1)


def similarity(x: Tensor, centre: Tensor) -> float:
    """Mean cosine over the pairs of different samples (B, D) about a centre (D,): 1 if all are
    one, 0 if their directions are spread evenly; nan of one sample."""
    unit, n = normalize(x.double() - centre.double(), dim=1), len(x)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1) or nan))


class Reliability:
    """Predictions r / (1 + r) against the truth, counted per noise level.

    ``table`` is (levels, BINS, 3) float64: how many data and how many samples were predicted in
    the bin, and the sum of their predictions.
    """

    def __init__(self, levels: int) -> None:
        self.table = torch.zeros(levels, BINS, 3, dtype=torch.float64)

    def update(self, real: Tensor, fake: Tensor, level: Tensor) -> Reliability:
        """Count logits (B,) of data and of samples at noise levels (B,), the same for both."""
        return self.add(real, level, real=True).add(fake, level, real=False)

    def add(self, logits: Tensor, level: Tensor, *, real: bool) -> Reliability:
        """Count logits (B,) of data, or of samples."""
        prediction = logits.detach().double().cpu().sigmoid().nan_to_num(0.5)
        cell = level.cpu() * BINS + (prediction * BINS).long().clamp_max(BINS - 1)
        flat = self.table.view(-1, 3)
        flat[:, 0 if real else 1].index_add_(0, cell, torch.ones_like(prediction))
        flat[:, 2].index_add_(0, cell, prediction)
        return self

    def errors(self) -> Tensor:
        """(levels,) expected calibration error: mean distance of a bin's mean prediction from its
        share of data, bins weighed by their counts; nan of a level without any."""
        data, samples, predicted = self.table.unbind(-1)
        return (data - predicted).abs().sum(1) / (data + samples).sum(1)
