"""How sure a figure is: bootstrap intervals (Efron 1979) for means and for Frechet distances.

A resample of n samples is a weight for each, multinomial, n in all. A mean's interval are the
percentiles of its resamples. A Frechet distance is biased upwards, the more the fewer samples, and
resampling adds the same bias once more: percentiles would lie above the figure. So the interval is
the figure plus and minus the resamples' spread about their own mean: it says where the figure of
another n samples would lie, and is to be compared with figures of as many samples only. What
resampling adds is told beside it; the distance at infinitely many samples is lower by about that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stack.evaluate.diversity import mode_counts, total_variation
from stack.evaluate.frechet import Moments, factor, frechet_distance

FEW = 10_000
"""Samples below which a figure is marked: a Frechet distance is mostly bias then."""

_ELEMENTS = 2**22  # resampled values, or centred features, held at a time


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, and how many samples are behind it.

    Args:
        low, high: ends of the interval. bias: how far resamples lie above the figure on average.
        level: how often such intervals hold the truth. samples: generated ones, or scores.
    """

    value: float
    low: float
    high: float
    samples: int
    level: float = 0.95
    bias: float = 0.0

    @property
    def few(self) -> bool:
        """Whether the figure is for a quick look only."""
        return self.samples < FEW

    def as_json(self) -> dict[str, float | int | bool]:
        """For a result file."""
        return {**vars(self), "few_samples": self.few}


def mean_estimate(
    scores: Tensor, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> Estimate:
    """Mean of scores (N,), which are independent: of several pictures of one prompt, their mean.

    Raises:
        ValueError: no scores.
    """
    if not len(scores):
        raise ValueError("no scores, no mean")
    values = scores.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _ELEMENTS // len(values))
    means = torch.cat(
        [
            values[torch.randint(len(values), (count, len(values)), generator=generator)].mean(1)
            for count in _parts(resamples, rows)
        ]
    )
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    mean = values.mean().item()
    return Estimate(mean, low, high, len(values), level, means.mean().item() - mean)


def share_estimate(
    share: float, samples: int, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> Estimate:
    """A share of samples, such as precision or recall; the manifold counts as given."""
    hits = torch.arange(samples) < round(share * samples)
    return mean_estimate(hits.double(), seed=seed, resamples=resamples, level=level)


def variation_estimate(
    labels: Tensor,
    reference: Tensor,
    *,
    seed: int = 0,
    resamples: int = 500,
    level: float = 0.95,
) -> Estimate:
    """Total variation of the classes of samples, int64 (N,), from counts (K,), which count as
    given. It is biased upwards as a Frechet distance is, and has the same kind of interval."""
    counts = mode_counts(labels.cpu(), len(reference))
    value = total_variation(counts, reference)
    generator = torch.Generator().manual_seed(seed)
    shares = counts.double().expand(resamples, -1)
    drawn = torch.multinomial(shares, len(labels), replacement=True, generator=generator)
    found = torch.stack(
        [torch.tensor(total_variation(mode_counts(row, len(counts)), reference)) for row in drawn]
    ).double()
    reach = found.std().item() * torch.special.ndtri(torch.tensor((1 + level) / 2)).item()
    bias = found.mean().item() - value
    return Estimate(value, max(0.0, value - reach), value + reach, len(labels), level, bias)


def frechet_estimate(
    features: Tensor,
    reference: Moments,
    *,
    seed: int = 0,
    resamples: int = 40,
    level: float = 0.95,
) -> Estimate:
    """Frechet distance of generated features (N, D) to a reference, which counts as given.

    Works on the reference's device. Memory: the features once, and a few (D, D) in float64. A
    resample costs one (N, D, D) product and the eigenvalues of a symmetric (D, D).

    Raises:
        ValueError: fewer than two samples on either side.
    """
    device = reference.mean.device
    moments = Moments(features.shape[1], device)
    for part in features.split(_block(features)):
        moments.update(part)
    value = frechet_distance(moments, reference)
    generator = torch.Generator().manual_seed(seed)
    resampled = _Resampled(features, moments.mean, reference)
    found = torch.tensor(
        [resampled.distance(_weights(len(features), generator)) for _ in range(resamples)],
        dtype=torch.float64,
    )
    reach = found.std().item() * torch.special.ndtri(torch.tensor((1 + level) / 2)).item()
    bias = found.mean().item() - value
    return Estimate(value, max(0.0, value - reach), value + reach, len(features), level, bias)


class _Resampled:
    """Frechet distances of weighted features (N, D) to a reference.

    With S_ref = L L^T, tr (S S_ref)^(1/2) is the sum of the square roots of the eigenvalues of
    L^T S L: symmetric, so no singular values are needed. Centring on the features' own mean keeps
    the weighted sums from cancelling.
    """

    def __init__(self, features: Tensor, centre: Tensor, reference: Moments) -> None:
        self.features, self.centre = features, centre
        mean, covariance = reference.finalize()
        self.shift = centre - mean
        self.root, self.spread = factor(covariance), covariance.trace()

    def distance(self, weights: Tensor) -> float:
        """Of one resample, float64 weights (N,) that sum to N."""
        n, width = len(self.features), len(self.centre)
        device = self.centre.device
        total = torch.zeros(width, dtype=torch.float64, device=device)
        scatter = torch.zeros(width, width, dtype=torch.float64, device=device)
        step = _block(self.features)
        for part, weight in zip(self.features.split(step), weights.split(step), strict=True):
            centred = part.to(device, torch.float64) - self.centre
            total += weight.to(device) @ centred
            centred *= weight.to(device).sqrt()[:, None]
            scatter.addmm_(centred.T, centred)
        mean = total / n
        covariance = (scatter - n * torch.outer(mean, mean)) / (n - 1)
        values = torch.linalg.eigvalsh(self.root.T @ covariance @ self.root)
        noise = values[-1] * len(values) * torch.finfo(values.dtype).eps
        cross = values[values > noise].sqrt().sum()
        shift = (self.shift + mean).square().sum()
        return (shift + covariance.trace() + self.spread - 2 * cross).item()


def _weights(n: int, generator: torch.Generator) -> Tensor:
    """How often each of n samples is drawn in n draws: float64 (n,)."""
    drawn = torch.randint(n, (n,), generator=generator)
    return torch.bincount(drawn, minlength=n).double()


def _parts(total: int, most: int) -> list[int]:
    return [min(most, total - done) for done in range(0, total, most)]


def _block(features: Tensor) -> int:
    return max(1, _ELEMENTS // features.shape[1])
