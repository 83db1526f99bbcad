"""Improved precision and recall (Kynkaanniemi et al. 2019, k = 3), with memory flat in the samples.

A set of features stands for a manifold: the union of balls around its samples, each as wide as the
distance to the sample's k-th nearest neighbour within the set. Precision is the share of generated
samples inside the real manifold, recall the share of real samples inside the generated one.

How far recall would move with other generated samples, the spread of recalls tells that some of
them are left out of: the delete-a-group jackknife (Shao and Wu 1989), for which resampling with
repeats will not do, because a sample's own copy is its nearest neighbour. All of them come from the
same pass: without a group a ball is gone, or as wide as the next neighbour is far.

Distances are taken a block at a time from a matrix product in float32, and those that lie within
its rounding of a decision again in float64 (`neighbours`), so the answer is that of a brute-force
float64 computation. Every product serves both its rows and its columns: three quarters of the time
go into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stack.evaluate.extractors import exact
from stack.evaluate.neighbours import Points, close_block, neighbours, squared_distances

_ROWS = 256  # of a block, whose doubtful pairs are held at a time
_MANY = 1 / 64  # of a block's pairs: so many differences cost more than a product of all


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
        a, b = Points(real, centre), Points(ordered, centre)
        told = None if groups is None else groups[order].to(fake.device)
        precise, covered = _inside_each_other(
            b, a, _balls(b, k, block, told), _balls(a, k, block), block
        )
    inside = torch.empty_like(precise.inside)
    inside[order.to(fake.device)] = precise.inside
    recalls = covered.without_each().double().mean(0).cpu()
    precision, recall = inside.double().mean().item(), covered.inside.double().mean().item()
    return PrecisionRecall(precision, recall, inside, recalls)


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


def _balls(points: Points, k: int, block: int, groups: Tensor | None = None) -> _Balls:
    """Balls as wide as each point's k-th nearest neighbour is far; of one group if None."""
    near, index = neighbours(points, k, block)
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


def _inside_each_other(
    a: Points, b: Points, balls_a: _Balls, balls_b: _Balls, block: int
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

    def __init__(self, points: Points, centres: Points, balls: _Balls) -> None:
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
        for some in left.split(_ROWS):
            self._look(product[some], rows[some], columns, group)

    def _look(self, product: Tensor, rows: Tensor, columns: Tensor, group: int) -> None:
        """Take in those pairs of a block that may be inside."""
        doubt = product - self.possible[columns] >= self.fat * self.points.squares[rows, None]
        i, j = doubt.nonzero().unbind(1)
        point, ball = rows[i], columns[j]
        squared = self._squared(product, rows, columns, i, j)
        hit = squared <= self.balls.squared_radii[ball]
        self.covered[point[hit], group] = True
        for out, wider in zip(self.balls.left_out.T, self.balls.wider.T, strict=True):
            within = squared <= wider[ball]
            self.grown[point[within], out[ball[within]]] = True

    def _squared(
        self, product: Tensor, rows: Tensor, columns: Tensor, i: Tensor, j: Tensor
    ) -> Tensor:
        """Squared distances of pairs (i, j) of a block, float64 (P,): from 2 a.b where that
        decides, where many are left from a product in float64, else exact."""
        point, ball = rows[i], columns[j]
        limits = torch.cat([self.balls.squared_radii[:, None], self.balls.wider], 1)[ball]
        norms = self.points.squares[point].double() + self.centres.squares[ball]
        squared, error = norms - product[i, j], self.points.slack * norms
        left = _undecided(squared, error, limits, self.points.slack)
        if len(left) > product.numel() * _MANY:
            close, error = close_block(self.points, rows, self.centres, columns)
            squared[left], error = close[i[left], j[left]], error[i[left], j[left]]
            room = self.points.small_slack
            left = left[_undecided(squared[left], error, limits[left], room)]
        squared[left] = squared_distances(self.points, point[left], self.centres, ball[left])
        return squared

    def _offset(self, share: float, squared_radii: Tensor, room: float) -> Tensor:
        return (share * self.centres.squares - squared_radii + room * squared_radii).float()


def _undecided(squared: Tensor, error: Tensor, limits: Tensor, slack: float) -> Tensor:
    """Places of squared distances (P,) that are too near to one of their limits (P, L)."""
    near = (squared[:, None] - limits).abs() <= error[:, None] + slack * limits
    return (near & (limits >= 0)).any(1).nonzero()[:, 0]  # Below zero is no ball.
