"""Distances between features, and each one's nearest others, with memory flat in the samples.

A block of distances comes from a matrix product in float32, |a|^2 + |b|^2 - 2 a.b, whose rounding
has a known bound. Where features crowd together, which those of a collapsed student do, that bound
exceeds the distances: then a product in float64 about the crowd's own mean tells them apart. What
lies within its bound, too, is done again from the differences in float64, so what is said to be
exact is what a brute-force float64 computation gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SPARE = 8  # candidates kept beyond the k-th neighbour before float64 decides
_ELEMENTS = 2**22  # float64 differences held at a time


class Points:
    """Features (N, D) with what the fast distances need, and the bound on their error.

    ``slack`` times (|a|^2 + |b|^2) bounds the error of a float32 squared distance: D + 2 roundings
    of the product, 2 of the norms, 8 of the centring and the sums, with room to spare.
    ``small_slack`` is float64's, beside which the differences' own rounding counts.
    """

    def __init__(self, features: Tensor, centre: Tensor) -> None:
        self.exact = features
        self.fast = (features - centre).float()
        parts = self.fast.split(max(1, _ELEMENTS // features.shape[1]))
        self.squares = torch.cat([part.double().square().sum(1).float() for part in parts])
        self.slack = (features.shape[1] + 16) * 2.0**-24
        self.small_slack = 3 * (features.shape[1] + 16) * 2.0**-53

    def __len__(self) -> int:
        return len(self.exact)


def neighbours(points: Points, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Squared distances of each point to its neighbours, float64 (N, width) in order, and their
    indices. The nearest ``k`` distances are exact, those beyond as long as no others crowd in."""
    width = min(k + _SPARE, len(points) - 1)
    low, index = _nearest(points, width, block)
    near = torch.empty(low.shape, dtype=torch.float64, device=low.device)
    for rows in torch.arange(len(points), device=low.device).split(block):
        near[rows], index[rows] = _in_order(points, rows, index[rows])
    for rows in _crowded(low, near[:, k - 1]).split(block):
        near[rows], index[rows] = _settle(points, rows, k, width, block)
    return near, index


def _in_order(points: Points, rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Exact squared distances of points to some others (rows, width), in order, and these."""
    width = others.shape[1]
    pairs = squared_distances(points, rows.repeat_interleave(width), points, others.ravel())
    squared, order = pairs.view(-1, width).sort(dim=1, stable=True)
    return squared, others.gather(1, order)


def _crowded(low: Tensor, squared_radii: Tensor) -> Tensor:
    """Places of those to which a point left out may be nearer than the k-th one that was kept:
    none of them can be nearer than the last of ``low`` (rows, width)."""
    return ((low[:, -1] <= squared_radii) & (squared_radii > 0)).nonzero()[:, 0]


def _nearest(points: Points, width: int, block: int) -> tuple[Tensor, Tensor]:
    """The least that the squared distances to each point's ``width`` nearest others can be, by
    float32's rounding, and the indices of these: (N, width), in order."""
    everyone = torch.arange(len(points), device=points.fast.device)
    low = torch.full((len(points), width), torch.inf, device=everyone.device)
    index = torch.zeros((len(points), width), dtype=torch.long, device=everyone.device)
    parts = everyone.split(block)
    for number, rows in enumerate(parts):
        for columns in parts[number:]:
            found = _fast_block(points, rows, columns)
            if columns is rows:
                found.fill_diagonal_(torch.inf)
            else:
                low[columns], index[columns] = _fold(
                    low[columns], index[columns], found.T.contiguous(), rows
                )
            low[rows], index[rows] = _fold(low[rows], index[rows], found, columns)
    return low, index


def _fold(least: Tensor, index: Tensor, found: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The least of ``least`` (rows, width) and ``found`` (rows, columns), and their indices."""
    width = least.shape[1]
    new = found.topk(min(width, len(columns)), largest=False)
    both = torch.cat([least, new.values], 1).topk(width, largest=False)
    indices = torch.cat([index, columns[new.indices]], 1)
    return both.values, indices.gather(1, both.indices)


def _settle(points: Points, rows: Tensor, k: int, width: int, block: int) -> tuple[Tensor, Tensor]:
    """What `neighbours` gives, of rows with more near ties than float32 can order."""
    low, index = _nearest_of(points, rows, width, block)
    near, index = _in_order(points, rows, index)
    left = _crowded(low, near[:, k - 1])
    if len(left):
        up_to = near[left, k - 1]
        near[left], index[left] = _nearest_of(points, rows[left], width, block, up_to)
    return near, index


def _nearest_of(
    points: Points, rows: Tensor, width: int, block: int, up_to: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `_nearest` gives, of some rows and by float64's rounding; with ``up_to`` (rows,) exact
    squared distances in place of all that may be up to that."""
    low = torch.full((len(rows), width), torch.inf, dtype=torch.float64, device=rows.device)
    index = torch.zeros((len(rows), width), dtype=torch.long, device=rows.device)
    for columns in torch.arange(len(points), device=rows.device).split(block):
        squared, error = close_block(points, rows, points, columns)
        found = squared.sub_(error).masked_fill_(rows[:, None] == columns, torch.inf)
        if up_to is not None:
            i, j = (found <= up_to[:, None]).nonzero().unbind(1)
            found[i, j] = squared_distances(points, rows[i], points, columns[j])
        low, index = _fold(low, index, found, columns)
    return low, index


def _fast_block(points: Points, rows: Tensor, columns: Tensor) -> Tensor:
    """The least that squared distances between two runs of the points can be, by float32's
    rounding: (rows, columns)."""
    squares = points.squares * (1 - points.slack)
    low = torch.addmm(squares[columns], points.fast[rows], points.fast[columns].T, alpha=-2)
    low += squares[rows, None]
    return low


def close_block(a: Points, i: Tensor, b: Points, j: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances of a[i] to b[j] from a product in float64, and bounds on their error:
    (rows, columns). About the mean of a[i], both are small where these are crowded."""
    x, y = a.exact[i].double(), b.exact[j].double()
    centre = x.mean(0)
    x, y = x - centre, y - centre
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2), norms.mul_(a.small_slack)


def squared_distances(a: Points, i: Tensor, b: Points, j: Tensor) -> Tensor:
    """Squared distances of the pairs (a[i], b[j]) from the differences in float64: (pairs,)."""
    step = max(1, _ELEMENTS // a.exact.shape[1])
    parts = [
        (a.exact[some].double() - b.exact[other].double()).square().sum(1)
        for some, other in zip(i.split(step), j.split(step), strict=True)
    ]
    return torch.cat(parts)
