"""Improved precision and recall (Kynkaanniemi et al. 2019, k = 3), with memory flat in the samples.

A set of features stands for a manifold: the union of balls around its samples, each as wide as the
distance to the sample's k-th nearest neighbour within the set. Precision is the share of generated
samples inside the real manifold, recall the share of real samples inside the generated one.

How far recall would move with other generated samples, the spread of recalls tells that some of
them are left out of: the delete-a-group jackknife (Shao and Wu 1989), for which resampling with
repeats will not do, because a sample's own copy is its nearest neighbour. All of them come from the
same pass: without a group a ball is gone, or as wide as the next neighbour is far.

Distances are taken a block at a time from a matrix product in float32, |a|^2 + |b|^2 - 2 a.b,
whose rounding has a known bound. What lies within that bound of a decision is done again in
float64 from the differences, so the answer is that of a brute-force float64 computation. Every
product serves both its rows and its columns: three quarters of the time go into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stack.evaluate.extractors import exact

_SPARE = 8  # candidates kept beyond the k-th neighbour before float64 decides
_ELEMENTS = 2**22  # float64 differences held at a time


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]; which of the generated samples are inside the real manifold, bool (M,); and
    recall without each group of generated samples, float64 (groups,)."""

    precision: float
    recall: float
    inside: Tensor
    recalls: Tensor


def precision_recall(
    real: Tensor,
    fake: Tensor,
    k: int = 3,
    block: int = 2048,
    groups: Tensor | None = None,
) -> PrecisionRecall:
    """Improved precision and recall of generated features (M, D) against real ones (N, D).

    Args:
        k: the neighbour whose distance is a ball's radius, not counting the sample itself.
        block: rows and columns of the distances held at a time.
        groups: int64 (M,), numbers from 0, of the generated samples that are left out together;
            without, there are no ``recalls``. These, unlike all else, may be off where a sample's
            nearest neighbours are as near as many others but for float32's rounding.

    Raises:
        ValueError: a set has no k-th neighbour, or the widths differ.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k={k} needs more than {k} samples, got {len(real)} and {len(fake)}")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features of {real.shape[1]} and {fake.shape[1]} dimensions")
    centre = real.mean(0)  # distances do not change, and rounding shrinks with the norms
    order = torch.arange(len(fake)) if groups is None else groups.argsort(stable=True)
    ordered = fake[order.to(fake.device)]
    with exact():
        a, b = _Points(real, centre), _Points(ordered, centre)
        told = None if groups is None else groups[order].to(fake.device)
        precise, covered = _inside_each_other(
            b, a, _balls(b, k, block, told), _balls(a, k, block), block
        )
    inside = torch.empty_like(precise.inside)
    inside[order.to(fake.device)] = precise.inside
    recalls = covered.without_each().double().mean(0).cpu()
    precision, recall = inside.double().mean().item(), covered.inside.double().mean().item()
    return PrecisionRecall(precision, recall, inside, recalls)


class _Points:
    """Features (N, D) with what the fast distances need, and the bound on their error.

    ``slack`` times (|a|^2 + |b|^2) bounds the error of a float32 squared distance: D + 2 roundings
    of the product, 2 of the norms, 8 of the centring and the sums, with room to spare.
    """

    def __init__(self, features: Tensor, centre: Tensor) -> None:
        self.exact = features
        self.fast = (features - centre).float()
        parts = self.fast.split(max(1, _ELEMENTS // features.shape[1]))
        self.squares = torch.cat([part.double().square().sum(1).float() for part in parts])
        self.slack = (features.shape[1] + 16) * 2.0**-24

    def __len__(self) -> int:
        return len(self.exact)


@dataclass(frozen=True)
class _Balls:
    """Balls around points (N,), by their squared radii.

    Args:
        squared_radii: float64 (N,). groups: int64 (N,), in order, of what is left out together.
        left_out: int64 (N, k), groups without which a ball is wider. wider: float64 (N, k), its
            squared radius then; -1 where the ball itself is gone with them.
    """

    squared_radii: Tensor
    groups: Tensor
    left_out: Tensor
    wider: Tensor

    @property
    def widest(self) -> Tensor:
        """Squared radii that no group's absence exceeds: float64 (N,)."""
        return torch.cat([self.squared_radii[:, None], self.wider], 1).amax(1)


def _balls(points: _Points, k: int, block: int, groups: Tensor | None = None) -> _Balls:
    """Balls as wide as each point's k-th nearest neighbour is far; of one group if None."""
    near, index = _neighbours(points, k, block)
    radii = near[:, k - 1]
    if groups is None:
        none = torch.zeros(len(points), dtype=torch.long, device=radii.device)
        return _Balls(radii, none, none[:, None], radii.new_full((len(points), 1), -1))
    of = groups[index]
    left_out = of[:, :k]
    kept = of[:, :, None] != left_out[:, None]
    far = near.amax(1, keepdim=True)  # Where too few candidates are left, the farthest one.
    wider = torch.where(kept, near[:, :, None], far[:, :, None]).kthvalue(k, 1).values
    return _Balls(radii, groups, left_out, wider.where(left_out != groups[:, None], -1))


def _neighbours(points: _Points, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Squared distances of each point to its neighbours, float64 (N, width) in order, and their
    indices. The nearest ``k`` distances are exact, those beyond as long as no others crowd in."""
    width = min(k + _SPARE, len(points) - 1)
    fast, index = _nearest(points, width, block)
    near = torch.empty(fast.shape, dtype=torch.float64, device=fast.device)
    for rows in torch.arange(len(points), device=fast.device).split(block):
        others = index[rows]
        pairs = _squared_distances(
            points, rows.repeat_interleave(width), points, others.ravel()
        ).view(-1, width)
        order = pairs.argsort(dim=1, stable=True)
        pairs, others = pairs.gather(1, order), others.gather(1, order)
        # A point left out may be nearer than the k-th candidate only by the fast ones' error.
        slack = points.slack * (points.squares[rows] + points.squares.max())
        radius = pairs[:, k - 1]
        unsure = (fast[rows, -1] - slack <= radius) & (radius > 0)
        bound = fast[rows][unsure, k - 1] + 2 * slack[unsure]
        pairs[unsure], others[unsure] = _settle(points, rows[unsure], bound, width, block)
        near[rows], index[rows] = pairs, others
    return near, index


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


def _settle(
    points: _Points, rows: Tensor, bound: Tensor, width: int, block: int
) -> tuple[Tensor, Tensor]:
    """Exact squared distances and indices of the nearest others of rows crowded with near ties:
    (rows, width), of those that have a fast squared distance up to ``bound`` (rows,), in order;
    the last one again where they are fewer."""
    found = []
    for columns in torch.arange(len(points), device=rows.device).split(block):
        near = _fast_block(points, rows, columns) <= bound[:, None]
        i, j = (near & (rows[:, None] != columns)).nonzero().unbind(1)
        found.append((i, columns[j], _squared_distances(points, rows[i], points, columns[j])))
    row, index, exact = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = exact.argsort()
    order = order[row[order].argsort(stable=True)]
    counts = torch.bincount(row, minlength=len(rows))[:, None]
    places = torch.arange(width, device=rows.device).minimum(counts - 1)
    chosen = order[counts.cumsum(0) - counts + places]
    return exact[chosen], index[chosen]


def _fast_block(points: _Points, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances between two runs of the points in float32: (rows, columns)."""
    squared = torch.addmm(
        points.squares[columns], points.fast[rows], points.fast[columns].T, alpha=-2
    )
    squared += points.squares[rows, None]
    return squared


def _inside_each_other(
    a: _Points, b: _Points, balls_a: _Balls, balls_b: _Balls, block: int
) -> tuple[_Inside, _Inside]:
    """Which of ``a`` lie in a ball of ``b``, and which of ``b`` in one of ``a``."""
    a_in_b, b_in_a = _Inside(a, b, balls_b), _Inside(b, a, balls_a)
    columns_of = _runs(balls_b.groups, block)
    for rows in _runs(balls_a.groups, block):
        for columns in columns_of:
            product = (2 * a.fast[rows]) @ b.fast[columns].T
            a_in_b.note(product, rows, columns)
            b_in_a.note(product.T.contiguous(), columns, rows)
    return a_in_b, b_in_a


def _runs(groups: Tensor, block: int) -> list[Tensor]:
    """Places 0, 1, ... in runs of one group and up to ``block`` of them."""
    counts = groups.unique_consecutive(return_counts=True)[1].tolist()
    everyone = torch.arange(len(groups), device=groups.device)
    return [run for group in everyone.split(counts) for run in group.split(block)]


class _Inside:
    """Whether each point lies in at least one of the balls, their surface included, by the balls'
    groups: bool (N, G).

    |a - b|^2 <= r^2 is read as 2 a.b - (|b|^2 - r^2) >= |a|^2, so that a block needs one product
    and one maximum for each edge of the error's bound.
    """

    def __init__(self, points: _Points, centres: _Points, balls: _Balls) -> None:
        self.points, self.centres, self.balls = points, centres, balls
        self.lean, self.fat = 1 + points.slack, 1 - points.slack
        # Rounding these offsets to float32 costs up to 2^-24 (|b|^2 + r^2): widen by the radius.
        self.certain = self._offset(self.lean, balls.squared_radii, points.slack)
        self.possible = self._offset(self.fat, balls.widest, -points.slack)
        size = (len(points), int(balls.groups[-1]) + 1)
        self.covered = torch.zeros(size, dtype=torch.bool, device=points.fast.device)
        self.grown = torch.zeros_like(self.covered)  # By a ball that a group's absence widens.

    @property
    def inside(self) -> Tensor:
        """Bool (N,)."""
        return self.covered.any(1)

    def without_each(self) -> Tensor:
        """Whether each point lies in a ball when a group is left out: bool (N, G)."""
        count = self.covered.sum(1, keepdim=True)
        return (count > self.covered.int()) | self.grown

    def note(self, product: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Take in 2 a.b of some points (rows) and some balls (columns), of one group."""
        group = int(self.balls.groups[columns[0]])
        floor, sure = self.points.squares[rows], self.covered[rows, group]
        sure |= (product - self.certain[columns]).amax(1) >= self.lean * floor
        self.covered[rows, group] = sure
        # Whoever is in balls of two groups is so whatever is left out.
        enough = min(2, self.covered.shape[1])
        left = (~sure & (self.covered[rows].sum(1) < enough)).nonzero()[:, 0]
        doubt = product[left] - self.possible[columns] >= self.fat * floor[left, None]
        i, j = doubt.nonzero().unbind(1)
        point, ball = rows[left[i]], columns[j]
        squared = self._squared(product[left[i], j], point, ball)
        hit = squared <= self.balls.squared_radii[ball]
        self.covered[point[hit], group] = True
        for out, wider in zip(self.balls.left_out.T, self.balls.wider.T, strict=True):
            within = squared <= wider[ball]
            self.grown[point[within], out[ball[within]]] = True

    def _squared(self, product: Tensor, point: Tensor, ball: Tensor) -> Tensor:
        """Squared distances of pairs, float64 (P,): from 2 a.b where that decides, else exact."""
        norms = self.points.squares[point].double() + self.centres.squares[ball]
        squared = norms - product
        limits = torch.cat([self.balls.squared_radii[:, None], self.balls.wider], 1)[ball]
        unsure = (squared[:, None] - limits).abs() <= self.points.slack * (norms[:, None] + limits)
        close = unsure.any(1)
        squared[close] = _squared_distances(self.points, point[close], self.centres, ball[close])
        return squared

    def _offset(self, share: float, squared_radii: Tensor, room: float) -> Tensor:
        return (share * self.centres.squares - squared_radii + room * squared_radii).float()


def _squared_distances(a: _Points, i: Tensor, b: _Points, j: Tensor) -> Tensor:
    """Squared distances of the pairs (a[i], b[j]) from the differences in float64: (pairs,)."""
    step = max(1, _ELEMENTS // a.exact.shape[1])
    parts = [
        (a.exact[some].double() - b.exact[other].double()).square().sum(1)
        for some, other in zip(i.split(step), j.split(step), strict=True)
    ]
    return torch.cat(parts)
