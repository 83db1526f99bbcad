"""Improved precision and recall (Kynkaanniemi et al. 2019, k = 3), with memory flat in the samples.

A set of features stands for a manifold: the union of balls around its samples, each as wide as the
distance to the sample's k-th nearest neighbour within the set. Precision is the share of generated
samples inside the real manifold, recall the share of real samples inside the generated one.

Distances are taken a block at a time from a matrix product in float32, |a|^2 + |b|^2 - 2 a.b,
whose rounding has a known bound. What lies within that bound of a decision is done again in
float64 from the differences, so the answer is that of a brute-force float64 computation. Every
product serves both its rows and its columns: three quarters of the time go into them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stack.evaluate.extractors import exact

_SPARE = 8  # candidates kept beyond the k-th neighbour before float64 decides
_ELEMENTS = 2**22  # float64 differences held at a time


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, block: int = 2048) -> PrecisionRecall:
    """Improved precision and recall of generated features (M, D) against real ones (N, D).

    Args:
        k: the neighbour whose distance is a ball's radius, not counting the sample itself.
        block: rows and columns of the distances held at a time.

    Raises:
        ValueError: a set has no k-th neighbour, or the widths differ.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k={k} needs more than {k} samples, got {len(real)} and {len(fake)}")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features of {real.shape[1]} and {fake.shape[1]} dimensions")
    centre = real.mean(0)  # distances do not change, and rounding shrinks with the norms
    with exact():
        a, b = _Points(real, centre), _Points(fake, centre)
        fake_inside, real_inside = _inside_each_other(
            b, a, _squared_radii(b, k, block), _squared_radii(a, k, block), block
        )
    return PrecisionRecall(fake_inside.double().mean().item(), real_inside.double().mean().item())


class _Points:
    """Features (N, D) with what the fast distances need, and the bound on their error.

    ``slack`` times (|a|^2 + |b|^2) bounds the error of a float32 squared distance: D + 2 roundings
    of the product, 2 of the norms, 8 of the centring and the sums, with room to spare.
    """

    def __init__(self, features: Tensor, centre: Tensor) -> None:
        self.exact = features
        self.fast = (features - centre).float()
        self.squares = self.fast.double().square().sum(1).float()
        self.slack = (features.shape[1] + 16) * 2.0**-24

    def __len__(self) -> int:
        return len(self.exact)


def _squared_radii(points: _Points, k: int, block: int) -> Tensor:
    """Squared distance of each point to its k-th nearest neighbour: float64 (N,)."""
    width = min(k + _SPARE, len(points) - 1)
    nearest, index = _nearest(points, width, block)
    radii = []
    for rows in torch.arange(len(points), device=points.fast.device).split(block):
        near, others = nearest[rows], index[rows].ravel()
        pairs = _squared_distances(points, rows.repeat_interleave(width), points, others)
        radius = pairs.view(-1, width).kthvalue(k).values
        # A point left out may be nearer than the k-th candidate only by the fast ones' error.
        slack = points.slack * (points.squares[rows] + points.squares.max())
        unsure = (near[:, -1] - slack <= radius) & (radius > 0)
        bound = near[unsure, k - 1] + 2 * slack[unsure]
        radius[unsure] = _settle(points, rows[unsure], bound, k, block)
        radii.append(radius)
    return torch.cat(radii)


def _nearest(points: _Points, width: int, block: int) -> tuple[Tensor, Tensor]:
    """Fast squared distances and indices of each point's ``width`` nearest others, in order."""
    everyone = torch.arange(len(points), device=points.fast.device)
    near = torch.full((len(points), width), torch.inf, device=everyone.device)
    index = torch.zeros((len(points), width), dtype=torch.long, device=everyone.device)

    def take(rows: Tensor, columns: Tensor, squared: Tensor) -> None:
        found = squared.topk(min(width, len(columns)), largest=False)
        both = torch.cat([near[rows], found.values], 1).topk(width, largest=False)
        indices = torch.cat([index[rows], columns[found.indices]], 1)
        near[rows], index[rows] = both.values, indices.gather(1, both.indices)

    parts = everyone.split(block)
    for number, rows in enumerate(parts):
        for columns in parts[number:]:
            squared = _fast_block(points, rows, columns)
            if columns is rows:
                take(rows, rows, squared.fill_diagonal_(torch.inf))
            else:
                take(rows, columns, squared)
                take(columns, rows, squared.T.contiguous())
    return near, index


def _settle(points: _Points, rows: Tensor, bound: Tensor, k: int, block: int) -> Tensor:
    """The k-th smallest exact squared distance of rows crowded with near ties: float64 (rows,).

    Every neighbour that can matter has a fast squared distance up to ``bound`` (rows,).
    """
    found = []
    for columns in torch.arange(len(points), device=rows.device).split(block):
        near = _fast_block(points, rows, columns) <= bound[:, None]
        i, j = (near & (rows[:, None] != columns)).nonzero().unbind(1)
        found.append((i, _squared_distances(points, rows[i], points, columns[j])))
    row, exact = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = exact.argsort()
    exact = exact[order][row[order].argsort(stable=True)]
    counts = torch.bincount(row, minlength=len(rows))
    return exact[counts.cumsum(0) - counts + k - 1]


def _fast_block(points: _Points, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances between two runs of the points in float32: (rows, columns)."""
    squared = torch.addmm(
        points.squares[columns], points.fast[rows], points.fast[columns].T, alpha=-2
    )
    squared += points.squares[rows, None]
    return squared


def _inside_each_other(
    a: _Points, b: _Points, squared_radii_a: Tensor, squared_radii_b: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Which of ``a`` lie in a ball of ``b``, bool (N,), and which of ``b`` in one of ``a``."""
    a_in_b, b_in_a = _Inside(a, b, squared_radii_b), _Inside(b, a, squared_radii_a)
    for rows in torch.arange(len(a), device=a.fast.device).split(block):
        for columns in torch.arange(len(b), device=a.fast.device).split(block):
            product = (2 * a.fast[rows]) @ b.fast[columns].T
            a_in_b.note(product, rows, columns)
            b_in_a.note(product.T.contiguous(), columns, rows)
    return a_in_b.inside, b_in_a.inside


class _Inside:
    """Whether each point lies in at least one of the balls, their surface included: bool (N,).

    |a - b|^2 <= r^2 is read as 2 a.b - (|b|^2 - r^2) >= |a|^2, so that a block needs one product
    and one maximum for each edge of the error's bound.
    """

    def __init__(self, points: _Points, balls: _Points, squared_radii: Tensor) -> None:
        self.points, self.balls, self.squared_radii = points, balls, squared_radii
        self.lean, self.fat = 1 + points.slack, 1 - points.slack
        # Rounding these offsets to float32 costs up to 2^-24 (|b|^2 + r^2): widen by the radius.
        room = points.slack * squared_radii
        self.certain = (self.lean * balls.squares - squared_radii + room).float()
        self.possible = (self.fat * balls.squares - squared_radii - room).float()
        self.inside = torch.zeros(len(points), dtype=torch.bool, device=points.fast.device)

    def note(self, product: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Take in 2 a.b of some points (rows) and some balls (columns)."""
        floor, sure = self.points.squares[rows], self.inside[rows]
        sure |= (product - self.certain[columns]).amax(1) >= self.lean * floor
        left = (~sure).nonzero()[:, 0]
        doubt = product[left] - self.possible[columns] >= self.fat * floor[left, None]
        i, j = doubt.nonzero().unbind(1)
        exact = _squared_distances(self.points, rows[left[i]], self.balls, columns[j])
        sure[left[i[exact <= self.squared_radii[columns[j]]]]] = True
        self.inside[rows] = sure


def _squared_distances(a: _Points, i: Tensor, b: _Points, j: Tensor) -> Tensor:
    """Squared distances of the pairs (a[i], b[j]) from the differences in float64: (pairs,)."""
    step = max(1, _ELEMENTS // a.exact.shape[1])
    parts = [
        (a.exact[some].double() - b.exact[other].double()).square().sum(1)
        for some, other in zip(i.split(step), j.split(step), strict=True)
    ]
    return torch.cat(parts)
