"""How sure a figure is: its interval for so many samples, and how many are behind it.

* A mean's are percentiles of the bootstrap (Efron 1979). Pictures of one prompt count as one.
* A Frechet distance's is the figure plus and minus the spread of its linear part: the mean of the
  samples' influences (Hampel 1974), a product more than the distance itself. It is biased upwards,
  the more the fewer samples, by about what halves of the samples lie above all of them: told beside
  it, not taken off, so an interval says where the figure of another n samples would lie, and is to
  be compared with figures of as many only. The distance at infinitely many is lower by the bias.
* Recall's is the figure plus and minus the delete-a-group jackknife's spread (Shao and Wu 1989).

The real pictures count as given everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stack.evaluate.diversity import mode_counts, total_variation
from stack.evaluate.frechet import Moments, factor, frechet_distance
from stack.evaluate.precision_recall import precision_recall

FEW = 10_000
"""Samples below which a figure is marked: a Frechet distance is mostly bias then."""

_ELEMENTS = 2**22  # resampled values, or centred features, held at a time
_GROUPS = 20  # of generated samples, left out in turn


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, and how many samples are behind it.

    Args:
        low, high: ends of the interval. samples: generated ones, or scores; of recall and
            precision real ones, if they are fewer. level: how often such intervals hold the figure
            that so many samples give on average. bias: how far that lies above the figure of
            infinitely many; None where it is not known.
    """

    value: float
    low: float
    high: float
    samples: int
    level: float = 0.95
    bias: float | None = None

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
    return Estimate(mean, low, high, len(values), level)


def share_estimate(
    share: float, samples: int, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> Estimate:
    """A share of independent samples."""
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
    bias = found.mean().item() - value
    reach = _deviations(level) * found.std().item()
    return Estimate(value, max(0.0, value - reach), value + reach, len(labels), level, bias)


def frechet_estimate(
    features: Tensor,
    reference: Moments,
    *,
    together: int = 1,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Frechet distance of generated features (N, D) to a reference.

    Works on the reference's device. Memory: the features once, and a few (D, D) in float64.

    Args:
        together: rows in a row that are of one prompt, and count as one sample of the spread.
        seed: of the halves.

    Raises:
        ValueError: fewer than two samples on either side.
    """
    device = reference.mean.device
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    halves = [Moments(features.shape[1], device) for _ in range(2)]
    step = _block(features)
    for part, places in zip(features.split(step), order.split(step), strict=True):
        halves[0].update(part[(places % 2 == 0).to(part.device)])
        halves[1].update(part[(places % 2 == 1).to(part.device)])
    moments = Moments(features.shape[1], device).merge(halves[0]).merge(halves[1])
    linear = _Linear(moments, reference)
    value = frechet_distance(moments, reference, linear.root)
    influences = linear.influences(features).view(-1, together).mean(1)
    reach = _deviations(level) * influences.std().item() / len(influences) ** 0.5
    bias = None
    if min(half.count for half in halves) > 1:
        whole, *parts = (linear.distance(one) for one in (moments, *halves))
        bias = sum(parts) / 2 - whole
    return Estimate(value, max(0.0, value - reach), value + reach, len(features), level, bias)


class _Linear:
    """A Frechet distance to a reference, and how it moves with each sample's weight.

    With S_r = L L^T, tr (S S_r)^(1/2) is the sum of the square roots of the eigenvalues of L^T S L.

    Args:
        moments: where it is differentiated.
    """

    def __init__(self, moments: Moments, reference: Moments) -> None:
        self.count, (self.mean, covariance) = moments.count, moments.finalize()
        self.wanted, other = reference.finalize()
        self.root, self.spread = factor(other), other.trace()
        values, vectors = torch.linalg.eigh(self.root.T @ covariance @ self.root)
        kept = _certain(values)
        self.half = (self.root @ vectors[:, kept]) * values[kept] ** -0.25

    def distance(self, moments: Moments) -> float:
        """Of other features than those it is differentiated at."""
        mean, covariance = moments.finalize()
        values = torch.linalg.eigvalsh(self.root.T @ covariance @ self.root)
        cross = values[_certain(values)].sqrt().sum()
        shift = (mean - self.wanted).square().sum()
        return (shift + covariance.trace() + self.spread - 2 * cross).item()

    def influences(self, features: Tensor) -> Tensor:
        """What each sample adds to the distance, to first order: float64 (N,), of mean zero.

        Of |m - m_r|^2 + tr S + tr S_r - 2 tr (L^T S L)^(1/2), the derivative by the sample's share
        in mean m and covariance S is, with c = x - m and T = L (L^T S L)^(-1/2) L^T,

            2 (m - m_r).c + c^T (I - T) c - tr (I - T) S

        Where S lacks rank, shares do not lead out of its range, and the inverse is that on it.

        Args:
            features: (N, D), those of the moments.
        """
        shift, parts = 2 * (self.mean - self.wanted), []
        for part in features.split(_block(features)):
            centred = part.to(self.mean) - self.mean
            quadratic = centred.square().sum(1) - (centred @ self.half).square().sum(1)
            parts.append(centred @ shift + quadratic * (self.count / (self.count - 1)))
        found = torch.cat(parts)
        return (found - found.mean()).cpu()


def _certain(values: Tensor) -> Tensor:
    """Which eigenvalues, in order, are more than rounding."""
    return values > values[-1] * len(values) * torch.finfo(values.dtype).eps


def manifold_estimates(
    real: Tensor, fake: Tensor, *, together: int = 1, seed: int = 0, level: float = 0.95
) -> dict[str, Estimate]:
    """Recall and precision of generated features (M, D) against real ones (N, D).

    Args:
        together: rows in a row that are of one prompt, and stay together. seed: of the groups.

    Raises:
        ValueError: too few samples for a neighbour.
    """
    prompts = len(fake) // together
    count = min(_GROUPS, prompts)
    order = torch.randperm(prompts, generator=torch.Generator().manual_seed(seed))
    found = precision_recall(real, fake, groups=(order % count).repeat_interleave(together))
    samples = min(len(real), len(fake))
    spread = (count - 1) * found.recalls.var(unbiased=False)
    reach = _deviations(level) * spread.sqrt().item()
    low, high = max(0.0, found.recall - reach), min(1.0, found.recall + reach)
    inside = found.inside.double().view(-1, together).mean(1)
    precision = mean_estimate(inside, seed=seed, level=level)
    return {
        "recall": Estimate(found.recall, low, high, samples, level),
        "precision": replace(precision, samples=samples),
    }


def _deviations(level: float) -> float:
    """Half the width of an interval, in standard deviations of a normal figure."""
    return torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()


def _parts(total: int, most: int) -> list[int]:
    return [min(most, total - done) for done in range(0, total, most)]


def _block(features: Tensor) -> int:
    return max(1, _ELEMENTS // features.shape[1])
