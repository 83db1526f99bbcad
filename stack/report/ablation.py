"""Tables of an ablation: mean and spread over seeds, and each cell against its baseline, paired by
seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import exp, isfinite, log, nan, pi, sqrt
from typing import Any, Literal, get_args

import numpy as np

Cell = tuple[str, ...]
Comparison = Literal["ratio", "difference"]
Scores = Mapping[Cell, Mapping[int, Mapping[str, float]]]
"""Cell -> seed -> metric -> value; what is not there yet is left out."""

_LEVEL = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Spread:
    """Mean over seeds with its sample standard deviation (nan of one value)."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Paired:
    """A cell against its baseline on the same seeds: geometric mean of ratios, or mean of
    differences, with a 95 % interval (nan of one pair)."""

    value: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Raises: ValueError: no values."""
    if not values:
        raise ValueError("no values, no mean")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else nan
    return Spread(float(np.mean(values)), deviation, len(values))


def paired(
    ours: Mapping[Any, float],
    base: Mapping[Any, float],
    *,
    ratio: bool = True,
    method: Literal["t", "bootstrap"] = "t",
) -> Paired | None:
    """Compare values by seed, or by what else they are keyed; None where no key has both, or there
    is :func:`no_ratio`."""
    pairs = _pairs(ours, base)
    if not pairs or (ratio and no_ratio(ours, base)):
        return None
    differences = np.array([log(a) - log(b) if ratio else a - b for a, b in pairs])
    centre, n = float(differences.mean()), len(pairs)
    low, high = _interval(differences, method) if n > 1 else (nan, nan)
    ends = (exp(centre), exp(low), exp(high)) if ratio else (centre, low, high)
    return Paired(*ends, n)


def no_ratio(ours: Mapping[Any, float], base: Mapping[Any, float]) -> str:
    """Why values that are paired have no ratio; empty where they have one."""
    lowest = min(map(min, _pairs(ours, base)), default=1.0)
    return "" if lowest > 0 else f"no ratio: a seed {'at' if lowest == 0 else 'below'} 0"


def _pairs(ours: Mapping[Any, float], base: Mapping[Any, float]) -> list[tuple[float, float]]:
    return [(ours[key], base[key]) for key in sorted(ours.keys() & base.keys())]


def _interval(values: np.ndarray, method: str) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    if method == "bootstrap":
        draws = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
        low, high = np.quantile(values[draws].mean(1), [tail, 1 - tail])
        return float(low), float(high)
    half = t_quantile(1 - tail, len(values) - 1) * values.std(ddof=1) / sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t, p > 1/2, by bisection of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    low, high = 0.0, 1.0
    while _t_within(high, degrees) < 2 * p - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def _t_within(t: float, degrees: int) -> float:
    """P(|T| < t) in closed form: a finite series in the cosine of theta = atan(t / sqrt(n))."""
    theta = np.arctan(t / sqrt(degrees))
    cosine, sine = float(np.cos(theta)), float(np.sin(theta))
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * cosine**2
    if odd:
        return 2 / pi * (float(theta) + sine * total)
    return sine * total


@dataclass(frozen=True)
class Layout:
    """What a table is of.

    Args:
        axes: axis -> its values. bases: cell -> the cells it is compared with, itself where it is
            a baseline. metrics: each, in order, and how it is compared. method: as
            :func:`paired` takes it.
    """

    axes: Mapping[str, Sequence[str]]
    bases: Mapping[Cell, Sequence[Cell]]
    metrics: Mapping[str, Comparison]
    method: Literal["t", "bootstrap"] = "t"

    @property
    def cells(self) -> list[Cell]:
        return list(product(*self.axes.values()))


def of_metric(scores: Scores, cell: Cell, metric: str) -> dict[int, float]:
    """Seed -> value."""
    return {s: row[metric] for s, row in scores.get(cell, {}).items() if metric in row}


def result_rows(layout: Layout, scores: Scores) -> Iterator[dict[str, Any]]:
    """A row per cell, metric and baseline that there is a value of, as in table.csv; one without a
    comparison for a cell that is compared with none. Where there should be a ratio and is none,
    ``comparison`` says why."""
    for cell, metric in product(layout.cells, layout.metrics):
        ours = of_metric(scores, cell, metric)
        if not ours:
            continue
        found = spread(list(ours.values()))
        for base in _others(layout, cell) or layout.bases[cell][:1] or [()]:
            against = _against(layout, scores, cell, base, metric)
            yield {
                **dict(zip(layout.axes, cell, strict=True)),
                "metric": metric,
                "mean": found.mean,
                "deviation": _finite(found.deviation),
                "seeds": found.count,
                "baseline": " / ".join(base),
                **_comparison(against, layout.metrics[metric]),
            }


def _comparison(against: Paired | str, kind: Comparison) -> dict[str, Any]:
    if isinstance(against, str):
        return {"comparison": against, "compared": None, "low": None, "high": None, "pairs": 0}
    return {
        "comparison": kind,
        "compared": against.value,
        "low": _finite(against.low),
        "high": _finite(against.high),
        "pairs": against.count,
    }


def _finite(value: float) -> float | None:
    """None, an empty cell, for what one seed cannot tell."""
    return value if isfinite(value) else None


def _others(layout: Layout, cell: Cell) -> list[Cell]:
    """What a cell is compared with, besides itself."""
    return [base for base in dict.fromkeys(layout.bases[cell]) if base != cell]


def _against(layout: Layout, scores: Scores, cell: Cell, base: Cell, metric: str) -> Paired | str:
    """Or why there is no comparison; empty where there is nothing to compare with."""
    if base == cell:
        return ""
    ours, theirs = (of_metric(scores, which, metric) for which in (cell, base))
    return _compare(layout, metric, ours, theirs)


def _compare(
    layout: Layout, metric: str, ours: Mapping[Any, float], theirs: Mapping[Any, float]
) -> Paired | str:
    """Or why there is no comparison."""
    ratio = layout.metrics[metric] == "ratio"
    return paired(ours, theirs, ratio=ratio, method=layout.method) or no_ratio(ours, theirs)


def markdown(title: str, layout: Layout, scores: Scores, *, notes: Sequence[str] = ()) -> str:
    """A table per metric: rows are the first axis, columns the combinations of the others."""
    seeds = sorted({seed for rows in scores.values() for seed in rows})
    kinds = " or ".join(kind for kind in get_args(Comparison) if kind in layout.metrics.values())
    lines = [
        f"# {title}",
        "",
        f"Mean ± standard deviation over seeds {', '.join(map(str, seeds)) or '(none yet)'}; "
        f"below it the {kinds} to a baseline on the same seeds with its 95 % interval "
        f"({'Student’s t' if layout.method == 't' else 'bootstrap'}).",
        *(f"{note}" for note in notes),
    ]
    first, *others = layout.axes
    columns = list(product(*(layout.axes[axis] for axis in others)))
    for metric in layout.metrics:
        heads = [" / ".join(column) or metric for column in columns]
        lines += ["", f"## {metric}", "", f"| {first} | " + " | ".join(heads) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for value in layout.axes[first]:
            cells = [_told(layout, scores, (value, *column), metric) for column in columns]
            lines.append(f"| {value} | " + " | ".join(cells) + " |")
        lines += ["", *_rankings(layout, scores, columns, metric), *_pooled(layout, scores, metric)]
    return "\n".join(lines).rstrip() + "\n"


def _rankings(
    layout: Layout, scores: Scores, columns: Sequence[Cell], metric: str
) -> Iterator[str]:
    """The first axis' values of each column in the order of their means, lowest first."""
    values = next(iter(layout.axes.values()))
    for column in columns:
        found = {value: of_metric(scores, (value, *column), metric) for value in values}
        means = {value: spread(list(own.values())).mean for value, own in found.items() if own}
        if len(means) > 1:
            where = f"{' / '.join(column)}: " if column else ""
            yield f"* {where}{' < '.join(sorted(means, key=means.__getitem__))}, by mean"


def _pooled(layout: Layout, scores: Scores, metric: str) -> Iterator[str]:
    """Each value against its baseline over all cells that differ from their baselines in that value
    alone; their pairs of runs are counted as independent."""
    groups: dict[tuple[str, str], list[tuple[Cell, Cell]]] = {}
    for cell in layout.cells:
        for base in _others(layout, cell):
            groups.setdefault(_apart(layout, cell, base), []).append((cell, base))
    kind = layout.metrics[metric]
    for (ours, theirs), members in groups.items():
        new, old = (
            {
                (number, seed): value
                for number, member in enumerate(members)
                for seed, value in of_metric(scores, member[side], metric).items()
            }
            for side in (0, 1)
        )
        cells = len({number for number, _ in new.keys() & old.keys()})
        if cells < 2:
            continue  # Its own comparison stands in the table.
        against = _compare(layout, metric, new, old)
        told = f"* {ours} against {theirs}: {_compared(against, kind)}"
        if isinstance(against, Paired):
            told += f", {against.count} pairs in {cells} cells, counted as independent"
        yield told


def _apart(layout: Layout, cell: Cell, base: Cell) -> tuple[str, str]:
    """The values in which a cell differs from its baseline, and the baseline's."""
    parts = [
        (_named(layout, axis, ours), _named(layout, axis, theirs))
        for axis, ours, theirs in zip(layout.axes, cell, base, strict=True)
        if ours != theirs
    ]
    return " / ".join(ours for ours, _ in parts), " / ".join(theirs for _, theirs in parts)


def _named(layout: Layout, axis: str, value: str) -> str:
    """A value, with its axis where another one has a value of that name too."""
    alone = sum(value in values for values in layout.axes.values()) == 1
    return value if alone else f"{axis} {value}"


def _told(layout: Layout, scores: Scores, cell: Cell, metric: str) -> str:
    """Mean and spread, and a line for each baseline, which is named where there are several."""
    values = list(of_metric(scores, cell, metric).values())
    if not values:
        return "–"
    found = spread(values)
    parts = [f"{found.mean:.4g}" + (f" ± {found.deviation:.2g}" if len(values) > 1 else "")]
    if cell in layout.bases[cell]:
        parts.append("baseline")
    for base in _others(layout, cell):
        if against := _against(layout, scores, cell, base, metric):
            _, theirs = _apart(layout, cell, base)
            whose = f" of {theirs}" if len(layout.bases[cell]) > 1 else ""
            parts.append(_compared(against, layout.metrics[metric]) + whose)
    return "<br>".join(parts)


def _compared(against: Paired | str, kind: Comparison) -> str:
    if isinstance(against, str):
        return against
    ratio = kind == "ratio"
    form = "{:.3f}" if ratio else "{:+.4g}"
    told = f"{'×' if ratio else ''}{form.format(against.value)}"
    if against.count > 1:
        told += f" [{form.format(against.low)}, {form.format(against.high)}]"
    return told
