"""How varied generated pictures are: modes hit, and likeness within one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mode_counts(labels: Tensor, modes: int) -> Tensor:
    """How often each of ``modes`` classes occurs in int64 labels (N,): int64 (modes,)."""
    return torch.bincount(labels, minlength=modes)


def mode_entropy(counts: Tensor) -> float:
    """Entropy of a histogram (K,), in nats: 0 where one mode has everything, log K where all have
    the same.

    Raises:
        ValueError: the histogram is empty.
    """
    if counts.sum() <= 0:
        raise ValueError("an empty histogram has no distribution")
    return torch.special.entr(counts.double() / counts.sum()).sum().item()


def total_variation(counts: Tensor | Sequence[float], reference: Tensor | Sequence[float]) -> float:
    """Total variation of two histograms (K,), each normalised first: 0 (equal) to 1 (disjoint).

    Raises:
        ValueError: the lengths differ, or a histogram is empty.
    """
    ours, theirs = (torch.as_tensor(h, dtype=torch.float64).cpu() for h in (counts, reference))
    if ours.shape != theirs.shape:
        raise ValueError(f"histograms of {len(ours)} and {len(theirs)} modes")
    if ours.sum() <= 0 or theirs.sum() <= 0:
        raise ValueError("an empty histogram has no distribution")
    return 0.5 * (ours / ours.sum() - theirs / theirs.sum()).abs().sum().item()


def in_batch_similarity(features: Tensor) -> float:
    """Mean cosine similarity over the pairs of different samples of one group, over all groups.

    Lower is more diverse; 1 means that every prompt gives one picture only. Arguments and errors
    are those of :func:`group_similarities`.
    """
    return group_similarities(features).mean().item()


def group_similarities(features: Tensor) -> Tensor:
    """Mean cosine similarity over the pairs of different samples of each group: float64 (groups,).

    Args:
        features: (groups, n, D), n samples of each prompt.

    Raises:
        ValueError: fewer than two samples in a group.
    """
    n = features.shape[1]
    if n < 2:
        raise ValueError(f"similarity needs two samples of a prompt, got {n}")
    unit = F.normalize(features.double(), dim=-1)
    # |sum of u|^2 holds every ordered pair once, and the n pairs of a sample with itself.
    pairs = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return pairs / (n * (n - 1))
