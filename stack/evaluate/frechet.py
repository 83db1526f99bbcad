"""Frechet distance between two sets of features, from streaming means and covariances.

With Gaussians N(m, S) fitted to both sets (Dowson and Landau 1982; Heusel et al. 2017, "FID"):

    d = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

The usual route takes the square root of the product S1 S2, which is not symmetric and nearly
singular as soon as features are fewer than their dimensions or correlated. With S = L L^T by a
symmetric eigendecomposition, the last trace is the sum of the singular values of L1^T L2: real,
never negative, and as accurate for rank-deficient features as for any.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of features that arrive in batches, in float64.

    Batches are folded in by the pairwise update of Chan, Golub and LeVeque (1979), so that nothing
    cancels however far the mean lies from zero.

    Args:
        dim: D, the width of the features.
        device: where the sums live; features are moved there.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> Moments:
        """Fold in features (B, D); an empty batch changes nothing. Returns self."""
        if len(features):
            batch = features.to(self.mean.device, torch.float64)
            mean = batch.mean(0)
            centred = batch - mean
            self._fold(len(batch), mean, centred.T @ centred)
        return self

    def merge(self, other: Moments) -> Moments:
        """Fold in what ``other`` has seen. Returns self."""
        if other.count:
            device = self.mean.device
            self._fold(other.count, other.mean.to(device), other.scatter.to(device))
        return self

    def finalize(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D).

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples, got {self.count}")
        return self.mean, self.scatter / (self.count - 1)

    def _fold(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        gap = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(gap, gap) * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total


def frechet_distance(a: Moments, b: Moments, root: Tensor | None = None) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features.

    Args:
        root: :func:`factor` of b's covariance, where it is at hand.

    Raises:
        ValueError: either set holds fewer than two samples.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a.finalize(), b.finalize()
    root = factor(cov_b) if root is None else root
    cross = factor(cov_a).T @ root.to(cov_a.device)
    shift = (mean_a - mean_b.to(mean_a.device)).square().sum()
    spread = cov_a.trace() + cov_b.trace().to(cov_a.device)
    distance = shift + spread - 2 * torch.linalg.svdvals(cross).sum()
    return max(distance.item(), 0.0)  # equal sets leave rounding of either sign


def factor(covariance: Tensor) -> Tensor:
    """L with L L^T = covariance, without the directions that are rounding only."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = values[-1] * len(values) * torch.finfo(values.dtype).eps
    kept = values > noise
    return vectors[:, kept] * values[kept].sqrt()
